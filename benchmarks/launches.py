"""How many kernels a GPU would start in one update, counted in the graph: no GPU is
needed.

The update is traced in the forms that a GPU gets, given to TensorFlow's own graph
optimiser for a GPU that is described to it, and counted: each operation once, one in a
loop as often as the loop runs. Left out is what starts no kernel: constants, variables
that are read or take over an array, reshapes, what only directs control, lists of
arrays unless they are joined, and what works on numbers in the host's memory, such as
shapes and loop counters.
"""

import collections
import dataclasses
import functools
from unittest import mock

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, device_properties_pb2, meta_graph_pb2
from tensorflow.python.framework import kernels, op_def_registry
from tensorflow.python.grappler import cluster, tf_optimizer
from tensorflow.python.training.saver import export_meta_graph

from agent import Dreamer

GPU = '/job:localhost/replica:0/task:0/device:GPU:0'
# As an A100 describes itself.
ENVIRONMENT = dict(architecture='8.0', cuda='12050', cudnn='9300')

NO_KERNEL = set(
    """
    Const Placeholder VarHandleOp ReadVariableOp AssignVariableOp NoOp
    Identity IdentityN StopGradient PreventGradient CheckNumerics Snapshot
    Reshape Squeeze ExpandDims Bitcast EnsureShape Shape ShapeN Size Rank
    BroadcastGradientArgs
    Enter Exit Merge Switch NextIteration LoopCond ControlTrigger
    TensorListReserve EmptyTensorList TensorListGetItem TensorListSetItem
    TensorListPushBack TensorListPopBack TensorListFromTensor TensorListElementShape
    TensorListLength
    """.split()
)


def count(config, action_size):
    """Launches of one update.

    Args:
      config: `configs.Config`, its precision resolved.
      action_size: A.

    Returns:
      `collections.Counter` of launches by loop, '' for those outside of any, and kind
      of operation.
    """
    with mock.patch.object(tf.config, 'list_physical_devices', _one_gpu):
        agent = Dreamer(dataclasses.replace(config, jit=False), action_size)
        rows = config.batch_size, config.batch_length
        function = agent.compiled.get_concrete_function(
            dict(
                image=tf.TensorSpec((*rows, 64, 64, 3), tf.uint8),
                action=tf.TensorSpec((*rows, action_size)),
                reward=tf.TensorSpec(rows),
                discount=tf.TensorSpec(rows),
                is_first=tf.TensorSpec(rows, tf.bool),
            )
        )
    return tally(optimised(function))


def _one_gpu(kind=None):
    return [tf.config.PhysicalDevice(f'/physical_device:{kind}:0', kind)]


def optimised(function):
    """The graph of a concrete function, as TensorFlow's optimiser leaves it for a GPU:
    functions inlined, loops in their primitive parts.
    """
    graph = function.graph.as_graph_def()
    for nodes in (graph.node, *(each.node_def for each in graph.library.function)):
        for node in nodes:
            node.device = GPU
    meta = export_meta_graph(graph_def=graph, graph=function.graph)
    kept = meta_graph_pb2.CollectionDef()
    kept.node_list.value.extend(
        [x.op.name for x in function.graph.outputs]
        + [x.name for x in function.graph.control_outputs]
    )
    meta.collection_def['train_op'].CopyFrom(kept)
    options = config_pb2.ConfigProto()
    options.graph_options.rewrite_options.min_graph_nodes = -1
    properties = device_properties_pb2.DeviceProperties(
        type='GPU', vendor='NVidia', environment=ENVIRONMENT, num_cores=108
    )
    device = device_properties_pb2.NamedDevice(name=GPU, properties=properties)
    return tf_optimizer.OptimizeGraph(
        options, meta, cluster=cluster.Cluster(devices=[device])
    )


def tally(graph):
    """Launches of a graph, as `count`."""
    nodes = {node.name: node for node in graph.node}
    frames = _frames(nodes)
    trips = _trips(nodes, frames)
    launches = collections.Counter()
    for name, node in nodes.items():
        if node.op not in NO_KERNEL and not _on_host(node):
            frame = frames[name]
            launches[frame, node.op] += trips[frame]
    return launches


def _source(name):
    return name.removeprefix('^').split(':')[0]


def _frames(nodes):
    """The loop that each node is in, '' for none; loops are not nested here."""
    frames = {}
    # Iterative, for graphs are deeper than Python's stack.
    consumers = collections.defaultdict(list)
    for name, node in nodes.items():
        for source in node.input:
            consumers[_source(source)].append(name)
    waiting = [(name, '') for name, node in nodes.items() if not node.input]
    while waiting:
        name, frame = waiting.pop()
        node = nodes[name]
        if node.op == 'Enter':
            frame = node.attr['frame_name'].s.decode()
        known = frames.get(name)
        # A constant in a loop may come from outside by a control edge alone.
        if known is not None and (known or not frame):
            continue
        frames[name] = frame
        passed = '' if node.op == 'Exit' else frame
        waiting += [(consumer, passed) for consumer in consumers[name]]
    return frames


def _trips(nodes, frames):
    """How often each loop runs: until its counter reaches a constant, or the number of
    another loop's turns.
    """

    def limit(name):
        node = nodes[_source(name)]
        if node.op == 'Const':
            return int(tf.make_ndarray(node.attr['value'].tensor))
        if node.op == 'Exit':
            return trips(frames[node.name])
        return limit(node.input[0])

    def trips(frame):
        bounds = [
            limit(node.input[1])
            for name, node in nodes.items()
            if frames[name] == frame and node.op == 'Less'
        ]
        return min(bounds)

    return {frame: trips(frame) if frame else 1 for frame in set(frames.values())}


def _on_host(node):
    """Whether a GPU's kernel for a node has all of its results in the host's memory."""
    results, found = _gpu_kernels(node.op)
    for kernel in found:
        if all(
            node.attr[limit.name].type in limit.allowed_values.list.type
            for limit in kernel.constraint
        ):
            return bool(results) and results <= set(kernel.host_memory_arg)
    return False


@functools.cache
def _gpu_kernels(kind):
    """The names of an operation's results, and its kernels on GPUs."""
    definition = op_def_registry.get(kind)
    found = kernels.get_registered_kernels_for_op(kind).kernel
    return (
        {result.name for result in definition.output_arg} if definition else set(),
        [kernel for kernel in found if kernel.device_type == 'GPU'],
    )
