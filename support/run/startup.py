"""A process begins: TensorFlow without its chatter, devices, memory.

To be imported before anything that imports TensorFlow. With `--verbose` on the command
line everything is printed. TensorFlow writes its first lines to file descriptor 2
before any setting of its own is heard, so that they are caught there; what is written
later obeys the environment variables below, which the simulators' processes inherit.
"""

import contextlib
import ctypes
import dataclasses
import errno
import itertools
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from support.system import limits

# Environment variable that lets a GPU be used for which TensorFlow has no code.
ANY_GPU = 'DREAMER_ANY_GPU'

SETTINGS = dict(
    TF_CPP_MIN_LOG_LEVEL='3',
    EGL_LOG_LEVEL='fatal',
    PYGAME_HIDE_SUPPORT_PROMPT='1',
    # Without any, the library behind pygame complains.
    XDG_RUNTIME_DIR=tempfile.gettempdir(),
)

# Of a processor that computes bfloat16 natively; others emulate it.
NATIVE_BFLOAT16 = {'avx512_bf16', 'amx_bf16'}


def asked_for_chatter(words):
    """Whether `--verbose` is among the words of a command line, and not as false."""
    verbose = False
    for word, following in itertools.pairwise([*words, '']):
        name, _, value = word.partition('=')
        if name == '--verbose':
            verbose = (value or following).lower() != 'false'
    return verbose


@contextlib.contextmanager
def caught_stderr():
    """Keep what the block writes to file descriptor 2, C++ included, from the
    screen. If the block raises, it is printed after all.
    """
    sys.stderr.flush()
    screen = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        except BaseException:
            sys.stderr.flush()
            file.seek(0)
            os.write(screen, file.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(screen, 2)
            os.close(screen)


# TensorFlow starts as many threads as affinity allows, whatever the quota of time is.
if limits.cores() < len(getattr(os, 'sched_getaffinity', lambda _: ())(0)):
    os.environ.setdefault('TF_NUM_INTRAOP_THREADS', str(limits.cores()))


@contextlib.contextmanager
def keras_by_default():
    """Let Keras, which is imported in the block, compute by TensorFlow, in float32 and
    with channels last, whatever the user's environment and `keras.json` say. Afterwards
    the environment is as before: a simulator may use Keras in another way.
    """
    # In what is no folder there is no `keras.json`, and none is written.
    ours = dict(KERAS_BACKEND='tensorflow', KERAS_HOME=f'{os.devnull}/keras')
    users = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in users.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# Off by default on processors without AVX-512, where it doubles the speed too.
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '1')
if asked_for_chatter(sys.argv[1:]):
    os.environ['DREAMER_VERBOSE'] = '1'
    screen = contextlib.nullcontext()
else:
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    screen = caught_stderr()
with screen, keras_by_default():
    import keras  # noqa: F401
    import tensorflow as tf

    # Its Keras, an older one, reads the same file.
    import tensorflow_probability  # noqa: F401

from support.learning import xla  # noqa: E402
from support.system.command_line import UserError  # noqa: E402


def set_up_devices(config):
    """Let GPU memory grow, so that renderers and neighbours find some too; resolve the
    automatic precision. Returns the configuration and the renderers' GPUs, None where
    they need not be told.

    Without a GPU everything is deterministic, which costs nothing there; with one if it
    is asked for. A GPU that TensorFlow cannot use is named.

    Raises:
      UserError: TensorFlow has no code for a GPU.
    """
    gpus = tf.config.list_physical_devices('GPU')
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    if misses_gpus(len(gpus), visible) and has_nvidia_driver():
        warn_of_missing_gpus(why_no_gpu(log_of_devices()))
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    if not os.environ.get(ANY_GPU):
        built = tf.sysconfig.get_build_info().get('cuda_compute_capabilities', ())
        refuse_unknown_gpus(details, built)
    if config.precision == 'auto':
        precision = suitable_precision(details)
        config = dataclasses.replace(config, precision=precision)
    if config.deterministic or not gpus:
        tf.config.experimental.enable_op_determinism()
    return config, render_devices(len(gpus), visible)


def misses_gpus(count, visible):
    """Whether someone with an NVIDIA driver expects more than the `count` GPUs that
    TensorFlow sees, given the value of CUDA_VISIBLE_DEVICES, None if it is not set.
    """
    return not count and (visible is None or visible.strip() not in ('', '-1'))


def has_nvidia_driver():
    """Whether this machine, or the one that lends it to a container, has one."""
    if pathlib.Path('/proc/driver/nvidia/version').exists():
        return True
    try:
        query = subprocess.run(
            ['nvidia-smi', '-L'], capture_output=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return query.returncode == 0


def log_of_devices():
    """What TensorFlow writes, at its highest level, while it looks for GPUs."""
    words = 'import tensorflow as tf; tf.config.list_physical_devices("GPU")'
    levels = dict(
        TF_CPP_MIN_LOG_LEVEL='0',
        TF_CPP_VMODULE='dso_loader=1,gpu_device=1,cuda_platform=1',
    )
    try:
        return subprocess.run(
            [sys.executable, '-c', words],
            env=os.environ | levels,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        ).stderr
    except subprocess.TimeoutExpired:
        return ''


def why_no_gpu(log):
    """Why TensorFlow sees no GPU, by its log, in a few words."""
    missing = re.findall(r"Could not load dynamic library '([^']+)'", log)
    if missing:
        return f'it cannot load {", ".join(dict.fromkeys(missing))}'
    failed = re.search(r'failed call to cuInit: (.+)', log)
    if failed:
        return f'the driver says {failed[1].strip()}'
    if 'Could not find cuda drivers' in log:
        return 'it finds no CUDA library'
    return 'it does not say why; --verbose shows its messages'


def warn_of_missing_gpus(cause):
    """One line of the cause, and of what to do."""
    print(
        'dreamer: warning: this machine has an NVIDIA driver, and TensorFlow can use '
        f'no GPU: {cause}; `.venv/bin/pip install -r requirements-gpu.txt` has its '
        'libraries, which need driver 525 or newer; CUDA_VISIBLE_DEVICES=-1 trains on '
        'the CPU without this line',
        file=sys.stderr,
    )


def refuse_unknown_gpus(details, built):
    """Raise UserError if TensorFlow has no code for a GPU: updates would fail, or XLA
    would end the process.

    Args:
      details: of each GPU, as TensorFlow's `get_device_details`.
      built: for what TensorFlow was built, as its `get_build_info` has it, such as
        'sm_80' or 'compute_90', which serves all of 9.x.
    """
    numbers = [int(re.sub(r'\D', '', name)) for name in built]
    if not numbers:
        return
    newest = divmod(max(numbers), 10)
    for gpu in details:
        capability = gpu.get('compute_capability', (0, 0))
        if capability[0] > newest[0]:
            raise UserError(
                f'TensorFlow {tf.__version__} has no code for the GPU '
                f'{gpu.get("device_name", "of this machine")} (compute capability '
                f'{".".join(map(str, capability))}; it ends at '
                f'{".".join(map(str, newest))}); possible: CUDA_VISIBLE_DEVICES=-1 for '
                f'the CPU, a newer TensorFlow, or {ANY_GPU}=1 to try it at your own '
                'risk'
            )


def render_devices(count, visible):
    """The numbers by which EGL knows the GPUs that TensorFlow sees, which TensorFlow
    counts from 0; None where EGL may take whichever it likes.

    Args:
      count: how many TensorFlow sees.
      visible: value of CUDA_VISIBLE_DEVICES; None where it is not set.
    """
    names = (visible or '').split(',')
    if all(name.strip().isdigit() for name in names):
        return [int(name) for name in names[:count]] or None
    return list(range(count)) if count > 1 else None


def suitable_precision(details):
    """The automatic precision.

    Args:
      details: of each GPU, as TensorFlow's `get_device_details`.

    Returns:
      'bfloat16', which needs no loss scale, where all GPUs compute it natively, from
      compute capability 8.0 on; '16' with older or unknown ones. Without any it is
      '32': in bfloat16 an update takes two thirds of the time on some processors, but
      the continuous learning test scored lower with each of four seeds (0.93, 0.77,
      0.83, 0.94; in float32 0.96, 0.91, 0.85, 0.96).
    """
    capabilities = [each.get('compute_capability', (0, 0)) for each in details]
    if not capabilities:
        return '32'
    return 'bfloat16' if min(capabilities) >= (8, 0) else '16'


def advise_precision(config, flags):
    """One line of advice where bfloat16 is emulated, None elsewhere.

    Args:
      config: `configs.Config` with its precision resolved.
      flags: what the processor can do, of `cpu_flags`.
    """
    if config.precision != 'bfloat16' or flags is None or NATIVE_BFLOAT16 & set(flags):
        return None
    return (
        'this processor emulates bfloat16 (it has neither avx512_bf16 nor amx_bf16), '
        'which is slow; --precision 32 is faster here'
    )


def cpu_flags():
    """What the processor can do, as in /proc/cpuinfo; None where that does not tell."""
    try:
        lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return None
    names = [line.split(':', 1)[1] for line in lines if line.startswith('flags')]
    return names[0].split() if names else None


def keep_freed_memory():
    """Tell glibc to keep freed blocks in one heap: else the activations of every update
    are unmapped and faulted in again (900,000 page faults an update at the paper's
    sizes). With a GPU it is the batches of replay on the host: without faults one takes
    13 ms of processor time to draw and hand over instead of 21. To be called before
    threads start; no effect on other systems.
    """
    trim_threshold, mmap_max, arena_max = -1, -4, -8
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, -1)
        libc.mallopt(arena_max, 1)
    except (OSError, AttributeError, TypeError):
        return


@contextlib.contextmanager
def disk_errors(path):
    """TensorFlow's errors from writing `path` as the OSError that they are."""
    try:
        yield
    except tf.errors.OpError as error:
        text = str(error.message).splitlines()[0]
        raise OSError(errno.EIO, f'could not be written ({text})', str(path)) from None


def explain(error):
    """What ended a program, in one line where TensorFlow or memory is the cause: their
    messages are long, and do not say what to try.
    """
    if isinstance(error, (tf.errors.ResourceExhaustedError, MemoryError)):
        cause = xla.cause(error) if isinstance(error, tf.errors.OpError) else str(error)
        return (
            f'out of memory ({cause or "no more is to be had"}); try a smaller '
            '--batch_size or --batch_length with --allow_config_change true, '
            '--precision 16 on a GPU or bfloat16 elsewhere, or end other programs that '
            'use the memory'
        )
    if not isinstance(error, tf.errors.OpError):
        return str(error) or type(error).__name__
    return (
        f'TensorFlow failed ({xla.cause(error)}); try the same command again, without '
        '--jit if it is on, with CUDA_VISIBLE_DEVICES=-1 for a run without a GPU, or '
        'install requirements-gpu.txt anew if it is a library of the GPU'
    )
