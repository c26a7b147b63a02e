"""What learning needs besides the networks: layers, optimiser, replicas, planner."""
