"""What a program says where TensorFlow or memory ends it."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import CLEAN, ROOT

import configs
from support.run import startup
from support.system.command_line import UserError

# isort: split
import tensorflow as tf


@pytest.mark.slow
def test_keras_is_as_the_networks_need_it_and_verbose_lets_tensorflow_speak(tmp_path):
    """And a simulator finds what the user has set."""
    settings = dict(floatx='float16', backend='jax', image_data_format='channels_first')
    (tmp_path / 'keras.json').write_text(json.dumps(settings | dict(epsilon=0.1)))
    script = (
        'import os\n'
        'from support.run import startup\n'
        'import keras\n'
        'print(keras.config.backend(), keras.config.floatx(), keras.config.epsilon(),\n'
        '      keras.config.image_data_format(), os.environ["KERAS_BACKEND"],\n'
        '      os.environ["KERAS_HOME"])\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', script, '--verbose'],
        cwd=ROOT,
        env=dict(CLEAN, KERAS_BACKEND='torch', KERAS_HOME=str(tmp_path)),
        text=True,
        capture_output=True,
        check=True,
    )
    assert (
        done.stderr
        and done.stdout == f'tensorflow float32 1e-07 channels_last torch {tmp_path}\n'
    )


def test_errors_of_tensorflow_and_memory_are_explained_in_one_line():
    message = (
        'Graph execution error:\n\nDetected at node x defined at (most recent '
        'call last):\n  File "a.py", line 1\n\n2 root error(s) found.\n  (0) '
        'UNIMPLEMENTED: DNN library is not found.\n\t [[{{node x}}]]\n  (1) CANCELLED: '
        'other\n0 successful operations. [Op:__inference_f_1]'
    )
    line = startup.explain(tf.errors.UnimplementedError(None, None, message))
    assert '(UnimplementedError: UNIMPLEMENTED: DNN library is not found.)' in line
    assert 'CUDA_VISIBLE_DEVICES=-1' in line and '\n' not in line
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        tf.function(tf.strings.to_number)('x')
    assert 'InvalidArgumentError: ' in startup.explain(error.value)
    assert 'Graph execution' not in startup.explain(error.value)
    compiled = tf.function(
        lambda x: tf.numpy_function(abs, [x], x.dtype), jit_compile=True
    )
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        compiled(tf.zeros(1))
    line = startup.explain(error.value)
    assert "PyFunc (No registered 'PyFunc' OpKernel" in line and '--jit' in line
    assert not any(noise in line for noise in ('{{', '__inference', '\n'))
    with pytest.raises(MemoryError) as error:
        np.empty(2**60, np.uint8)
    line = startup.explain(error.value)
    assert 'out of memory (Unable to allocate' in line and '--batch_size' in line
    assert 'no more is to be had' in startup.explain(MemoryError())
    assert startup.explain(OSError(28, 'full')) == '[Errno 28] full'
    assert startup.explain(KeyError()) == 'KeyError'


@pytest.mark.parametrize(
    'capabilities, precision',
    [
        ([], '32'),
        ([(7, 0)], '16'),
        ([(7, 5)], '16'),
        ([(8, 0)], 'bfloat16'),
        ([(9, 0), (9, 0)], 'bfloat16'),
        ([(10, 0)], 'bfloat16'),
        # All share a batch, so that the oldest decides.
        ([(8, 6), (7, 0)], '16'),
        ([None], '16'),
    ],
)
def test_precision_that_suits_the_gpus(capabilities, precision):
    details = [
        dict(device_name='GPU', **(dict(compute_capability=each) if each else {}))
        for each in capabilities
    ]
    assert startup.suitable_precision(details) == precision


def test_bfloat16_where_the_processor_lacks_it_is_advised_against():
    def advice(precision, *flags):
        return startup.advise_precision(
            configs.parse(['--precision', precision]), flags
        )

    assert '--precision 32' in advice('bfloat16', 'avx2', 'avx512f')
    assert '\n' not in advice('bfloat16')
    for precision, flags in (
        ('bfloat16', ['avx512_bf16']),
        ('bfloat16', ['amx_bf16']),
        ('32', ['avx2']),
        ('16', []),
    ):
        assert advice(precision, *flags) is None
    unknown = startup.advise_precision(configs.parse(['--precision', 'bfloat16']), None)
    assert unknown is None
    assert 'fpu' in startup.cpu_flags()


BUILT = ['sm_60', 'sm_70', 'sm_80', 'sm_89', 'compute_90']


@pytest.mark.parametrize(
    'capability', [(6, 0), (7, 0), (7, 5), (8, 0), (8, 9), (9, 0), None]
)
def test_gpus_that_tensorflow_has_code_for(capability):
    found = dict(compute_capability=capability) if capability else {}
    startup.refuse_unknown_gpus([found], BUILT)


@pytest.mark.parametrize(
    'name, capability', [('RTX 5090', (12, 0)), ('NVIDIA B200', (10, 0))]
)
def test_gpus_that_tensorflow_has_no_code_for_are_refused_in_one_line(name, capability):
    gpus = [
        dict(device_name='A100', compute_capability=(8, 0)),
        dict(device_name=name, compute_capability=capability),
    ]
    with pytest.raises(UserError) as error:
        startup.refuse_unknown_gpus(gpus, BUILT)
    line = str(error.value)
    number = '.'.join(map(str, capability))
    for words in name, f'capability {number};', 'ends at 9.0', '=-1', startup.ANY_GPU:
        assert words in line
    assert '\n' not in line and 'A100' not in line
    # A newer TensorFlow may have it; one that was built for none does not tell.
    startup.refuse_unknown_gpus(gpus, [*BUILT, 'sm_120a'])
    startup.refuse_unknown_gpus(gpus, [])


@pytest.mark.parametrize(
    'count, visible, expected',
    [
        (0, None, True),
        (0, '0,1', True),
        (0, 'GPU-1b2c', True),
        (0, '', False),
        (0, ' -1 ', False),
        (1, None, False),
    ],
)
def test_who_misses_gpus(count, visible, expected):
    assert startup.misses_gpus(count, visible) is expected


# As TensorFlow 2.21 writes it.
LOADS = [
    "I0000 00:00:1 7 dso_loader.cc:144] Could not load dynamic library '{0}'; dlerror: "
    '{0}: cannot open shared object file: No such file or directory',
    'E0000 00:00:1 7 cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA error: '
    'Failed call to cuInit: UNKNOWN ERROR (303)',
]


@pytest.mark.parametrize(
    'lines, cause',
    [
        ([LOADS[0].format(x) for x in ('a.so', 'b.so', 'a.so')], 'load a.so, b.so'),
        (LOADS[1:], 'the driver says INTERNAL: CUDA error: Failed call'),
        (['cudart_stub.cc:31] Could not find cuda drivers on'], 'no CUDA library'),
        (['else'], '--verbose'),
    ],
)
def test_why_tensorflow_sees_no_gpu(capsys, lines, cause):
    startup.warn_of_missing_gpus(startup.why_no_gpu('\n'.join(lines)))
    (line,) = capsys.readouterr().err.splitlines()
    assert cause in line and 'requirements-gpu.txt' in line


@pytest.mark.slow
def test_tensorflow_says_what_it_cannot_load():
    if tf.config.list_physical_devices('GPU'):
        pytest.skip('about machines without a GPU')
    assert 'libcuda.so.1' in startup.why_no_gpu(startup.log_of_devices())


@pytest.mark.parametrize(
    'count, visible, devices',
    [
        # EGL counts all GPUs of the machine, TensorFlow those that it may see.
        (1, '3', [3]),
        (2, '3,1', [3, 1]),
        (2, ' 3 , 1 ', [3, 1]),
        (1, '3,1', [3]),
        # Names say nothing about EGL's numbers.
        (1, 'GPU-1b2c', None),
        (2, 'GPU-1b2c,GPU-3d4e', [0, 1]),
        (1, None, None),
        (4, None, [0, 1, 2, 3]),
        (0, None, None),
        (0, '', None),
        (0, '-1', None),
        (0, '3', None),
    ],
)
def test_gpus_as_egl_counts_them(count, visible, devices):
    assert startup.render_devices(count, visible) == devices
