"""Two replicas, on logical CPU devices, make the update of one device."""

import json

import forks
import pytest

import configs
from support.learning import replicas


@pytest.fixture(scope='module')
def results():
    process = forks.Program('tests/learning/two_replicas.py', [], apart=True)
    printed = process.finish()
    assert process.returncode == 0, process.errors
    return json.loads(printed.splitlines()[-1])


def check_same(result, tolerance=1e-5):
    """Weights and averages of gradients agree, metrics too, replicas to the last bit;
    and something has happened.
    """
    assert result['weights'] < tolerance and result['adam'] < 10 * tolerance
    assert result['own'] == 0 and result['replicas'] == 0
    assert result['moved'] > 1e-4
    one, two = result['metrics']
    assert two == pytest.approx(one, rel=10 * tolerance, abs=tolerance)


@pytest.mark.slow
class TestTwoReplicas:
    def test_compiled_update(self, results):
        """Of images and states. The norm of the mean gradient is clipped."""
        check_same(results['graph'])
        norms = [
            results['graph']['metrics'][0][f'{name}_grad_norm']
            for name in ('model', 'value')
        ]
        assert min(norms) > 0.05

    def test_free_nats_between_the_halves(self, results):
        """One half is below them and one above: what counts is the mean of both."""
        assert results['kl'][1] > 1.05 * results['kl'][0]
        check_same(results['above'])
        check_same(results['below'])

    @pytest.mark.parametrize('name', ['contrastive', 'window'])
    def test_images_of_the_other_replica_are_contrasted_with(self, results, name):
        check_same(results[name])

    def test_nan_on_the_second_replica_is_skipped_on_both(self, results):
        check_same(results['nan'] | {'metrics': [{}, {}]})
        assert results['nan']['skipped'] == [[1, 1, 1]] * 2
        assert results['nan']['last_moved'] == 0

    def test_float16(self, results):
        result = results['float16']
        assert result['skipped'] == [[0, 0, 0]] * 2
        one, two = result['metrics']
        assert two == pytest.approx(one, rel=1e-2, abs=1e-3)
        assert result['weights'] < 1e-2 and result['own'] == result['replicas'] == 0
        assert result['adam'] < 2e-2


@pytest.mark.parametrize(
    'flags, words',
    [
        (['--batch_size', '9'], ['--batch_size 9', '2 GPUs', 'multiples of 2']),
        (['--batch_size', '8', '--jit', 'true'], ['--jit', '2']),
        (['--deterministic'], ['--deterministic', '2 GPUs', 'one device']),
    ],
)
def test_what_cannot_be_split_is_one_line(flags, words):
    with pytest.raises(ValueError) as error:
        replicas.make_strategy(configs.parse(flags), ['GPU:0', 'GPU:1'])
    message = str(error.value)
    assert '\n' not in message and all(word in message for word in words)


def test_one_device_needs_no_strategy():
    assert replicas.make_strategy(configs.parse([]), ['GPU:0']) is None
