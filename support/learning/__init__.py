"""Parts of learning besides the networks: layers, optimiser, replicas, planner."""
