"""Count a GPU's kernels and copies in one update in graph mode, without a GPU.

    python benchmarks/launches.py [--task_actions 6] [dreamer.py flags]

The update is traced as for a GPU. TensorFlow's graph optimiser then gets a description
of a GPU. Operations of the resulting graph count once; operations in a loop count once
for each turn. The last line is one JSON object:

    kernels    launches. These operations launch none: constants, reads and assignments
               of variables, reshapes, control flow, lists of arrays unless they join
               them, and work in the host's memory, such as on shapes and loop counters
    to_host    copies from the device's memory to the host's, when an operation needs a
               value there that another one has left on the device. Each copy waits for
               all kernels started before
    to_device  copies the other way, without the batch, which `Dreamer.on_device` has
               copied before
"""

import collections
import dataclasses
import functools
import json
import pathlib
import sys
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from support.run import startup  # noqa: F401 (first: it imports TensorFlow without its chatter)

# isort: split
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import config_pb2, device_properties_pb2, meta_graph_pb2
from tensorflow.python.framework import kernels, op_def_registry
from tensorflow.python.grappler import cluster, tf_optimizer
from tensorflow.python.training.saver import export_meta_graph

import configs
from agent import Dreamer
from support.system import command_line

GPU = '/job:localhost/replica:0/task:0/device:GPU:0'
# The description of an A100.
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


@dataclasses.dataclass
class Counts:
    """Counters of one graph.

    Attributes:
      kernels: by loop ('' outside of loops) and kind of operation.
      to_host, to_device: copies by the kinds of their source and target operations.
    """

    kernels: collections.Counter
    to_host: collections.Counter
    to_device: collections.Counter

    @property
    def totals(self):
        """Total of each counter by name."""
        return {name: each.total() for name, each in vars(self).items()}


def count(config, action_size):
    """Return the `Counts` of one update.

    Args:
      config: `configs.Config`, its precision resolved.
      action_size: A.
    """
    with mock.patch.object(tf.config, 'list_physical_devices', _one_gpu):
        agent = Dreamer(dataclasses.replace(config, jit='false'), action_size)
        rows = config.batch_size, config.batch_length
        function = agent.form.get_concrete_function(
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
    """Optimise a concrete function's graph for a GPU. The result has no functions, and
    its loops consist of primitive operations.
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
    """Return the `Counts` of a graph."""
    nodes = {node.name: node for node in graph.node}
    frames = _frames(nodes)
    trips = _trips(nodes, frames)
    launches = collections.Counter()
    for name, node in nodes.items():
        if node.op not in NO_KERNEL and not _on_host(node):
            frame = frames[name]
            launches[frame, node.op] += trips[frame]
    to_host, to_device = collections.Counter(), collections.Counter()
    for (source, wanted), node in _moved(nodes).items():
        way = to_host if wanted else to_device
        way[nodes[_source(source)].op, node.op] += trips[frames[node.name]]
    return Counts(launches, to_host, to_device)


def _moved(nodes):
    """Find values that nodes need in the other memory: a dict with keys (name, whether
    the host needs it). Nodes that need the same value share a copy; one is returned.
    """
    moved = {}
    for node in nodes.values():
        kernel = _kernel(node)
        if not kernel:
            continue
        inputs = _names(node, op_def_registry.get(node.op).input_arg)
        sources = [source for source in node.input if not source.startswith('^')]
        for name, source in zip(inputs, sources, strict=True):
            lies = _lies_on_host(nodes[_source(source)], source)
            wanted = name in kernel.host_memory_arg
            if lies is not None and lies != wanted:
                moved[source, wanted] = node
    return moved


def _lies_on_host(node, output):
    """Return whether an output of a node is in the host's memory; None for a variable's
    handle, which is no array.
    """
    index = int(output.partition(':')[2] or 0)
    if node.op == 'Placeholder':
        kind = node.attr['dtype'].type
        return None if kind == types_pb2.DT_RESOURCE else kind == types_pb2.DT_INT32
    kernel = _kernel(node)
    results = _names(node, op_def_registry.get(node.op).output_arg)
    return bool(kernel) and results[index] in kernel.host_memory_arg


def _names(node, arguments):
    """Return a name for each input or output; values of a list share its name."""
    names = []
    for argument in arguments:
        count = 1
        if argument.number_attr:
            count = node.attr[argument.number_attr].i
        elif argument.type_list_attr:
            count = len(node.attr[argument.type_list_attr].list.type)
        names += [argument.name] * count
    return names


def _source(name):
    return name.removeprefix('^').split(':')[0]


def _frames(nodes):
    """Return the loop of each node, '' outside of loops; loops must not be nested."""
    frames = {}
    # Not recursive, because graphs are deeper than Python's stack.
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
        # A constant in a loop may have only a control edge from outside.
        if known is not None and (known or not frame):
            continue
        frames[name] = frame
        passed = '' if node.op == 'Exit' else frame
        waiting += [(consumer, passed) for consumer in consumers[name]]
    return frames


def _trips(nodes, frames):
    """Return the number of turns of each loop. Its counter's limit is a constant, or
    the number of another loop's turns.
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
    """Return whether a node's kernel for a GPU has all results in the host's memory."""
    results = {result.name for result in op_def_registry.get(node.op).output_arg}
    kernel = _kernel(node)
    return bool(kernel and results) and results <= set(kernel.host_memory_arg)


def _kernel(node):
    """Return the kernel that a node would run on a GPU; None without one."""
    for kernel in _gpu_kernels(node.op):
        if all(
            node.attr[limit.name].type in limit.allowed_values.list.type
            for limit in kernel.constraint
        ):
            return kernel
    return None


@functools.cache
def _gpu_kernels(kind):
    """Return an operation's kernels for GPUs and for any device."""
    found = kernels.get_registered_kernels_for_op(kind).kernel
    return [
        kernel
        for device in ('GPU', 'DEFAULT')
        for kernel in found
        if kernel.device_type == device
    ]


def main():
    """Run the command line."""
    parser = command_line.Parser(
        prog='launches.py', description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        '--task_actions',
        type=command_line.number(int, 1),
        default=6,
        help='action size',
    )
    with command_line.refusing('launches'):
        args, flags = parser.parse_known_args()
        config = configs.parse(flags)
    config, _ = startup.set_up_devices(config)
    counts = count(config, args.task_actions)
    for name, each in vars(counts).items():
        for (first, second), number in each.most_common(10):
            print(f'{name} {number:6,} {first or "in no loop"} {second}')
    print(json.dumps(counts.totals))


if __name__ == '__main__':
    main()
