"""One run on several machines: here two processes that talk over loopback."""

import json
import socket

import forks
import pytest
from conftest import CLEAN, short_run

import configs
import dreamer
from support.learning import replicas
from support.scaling import machines
from support.storage.metrics import read as read_metrics
from support.system import command_line

HOSTS = ['host1:2222', 'host2:2222', 'host3:2222']


def tf_config(cluster=None, kind='worker', index=0):
    return json.dumps(
        dict(cluster=cluster or dict(worker=HOSTS), task=dict(type=kind, index=index))
    )


class TestReadCluster:
    def test_machine(self):
        addresses = machines.read_addresses(tf_config(index=2))
        assert addresses == machines.Addresses(tuple(HOSTS), 2)

    @pytest.mark.parametrize('kind, index, rank', [('chief', 0, 0), ('worker', 1, 2)])
    def test_a_chief_is_machine_0(self, kind, index, rank):
        jobs = dict(worker=HOSTS[1:], chief=HOSTS[:1])
        addresses = machines.read_addresses(tf_config(jobs, kind, index))
        assert addresses == machines.Addresses(tuple(HOSTS), rank)

    @pytest.mark.parametrize('text', [None, '', tf_config(dict(worker=HOSTS[:1]))])
    def test_one_machine_needs_none(self, text):
        assert machines.read_addresses(text) is None

    @pytest.mark.parametrize(
        'text, words',
        [
            ('host1:2222', ['not JSON']),
            ('[]', ['right parts']),
            ('{}', ["no 'cluster'"]),
            ('{"cluster": {"worker": ["a:1", "b:2"]}}', ["no 'task'"]),
            (tf_config(dict(chief=HOSTS)), ["no 'worker'"]),
            (tf_config(dict(worker=HOSTS, ps=['a:1'])), ['ps', 'worker, chief']),
            (
                tf_config(dict(worker=HOSTS, chief=['a:1', 'b:1'])),
                ['more than one chief'],
            ),
            (tf_config(dict(worker=5)), ['right parts']),
            (tf_config(dict(worker=['host1', 'host2:1'])), ["'host1'", 'HOST:PORT']),
            (tf_config(dict(worker=['a:1', 'b:65536'])), ["'b:65536'", 'HOST:PORT']),
            (tf_config(dict(worker=['a:1', 'a:1'])), ['a:1 twice']),
            (tf_config(index=3), ['index 3', '0 to 2']),
            (tf_config(index=-1), ['index -1']),
            (tf_config(index='0'), ["index '0'"]),
            (tf_config(kind='ps'), ["'ps'", 'worker']),
            (tf_config(kind='chief'), ["'chief'"]),
            (tf_config(kind=[]), ['right parts']),
            (tf_config(dict(worker=[], chief=['a:1'])), ['no address of a worker']),
            (tf_config(dict(worker=['a:1'], chief=[]), 'chief'), ['of a chief']),
        ],
    )
    def test_malformed(self, text, words):
        with pytest.raises(command_line.UserError) as error:
            machines.read_addresses(text)
        message = str(error.value)
        assert '\n' not in message and machines.EXAMPLE in message
        assert (
            message.startswith('TF_CONFIG ') and 'unset it for one machine' in message
        )
        assert all(word in message for word in words)


@pytest.mark.parametrize(
    'text, flags, words',
    [
        ('no', [], ['TF_CONFIG is not JSON']),
        ('{}', [], ["TF_CONFIG has no 'cluster'; unset it"]),
        (tf_config(), ['--batch_size', '50'], ['--batch_size 50', 'multiples of 3']),
        (
            tf_config(),
            ['--batch_size', '9', '--jit', 'true'],
            ['--jit', 'fewer machines'],
        ),
        (
            tf_config(dict(worker=['127.0.0.1:2222', 'no.such.invalid:2222'])),
            [],
            ['TF_CONFIG names no.such.invalid:2222', 'no address'],
        ),
        (
            tf_config(dict(worker=['127.0.0.1:2222', 'a..b:2222'])),
            [],
            ['TF_CONFIG names a..b:2222', 'no address'],
        ),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capfd, text, flags, words):
    monkeypatch.setenv('TF_CONFIG', text)
    monkeypatch.setattr(replicas, 'PATIENCE', 0)
    with pytest.raises(SystemExit) as error:
        dreamer.main(
            ['--logdir', str(tmp_path / 'logs'), '--task', 'dummy_continuous', *flags]
        )
    (line,) = capfd.readouterr().err.splitlines()
    assert error.value.code == 2 and all(word in line for word in words)
    assert not list(tmp_path.iterdir())


def test_alone(monkeypatch):
    """A machine without others has no team, and none of it in its run."""
    monkeypatch.delenv('TF_CONFIG', raising=False)
    assert machines.connect(configs.parse(['--batch_size', '6'])) == (None, None)
    assert not issubclass(dreamer.Run, machines.Leading)


def run_both(script, words, faults=('', '')):
    """Run a program as both machines of a cluster on this machine. Returns exit codes,
    what they printed, and their lines on stderr, by rank.
    """
    sockets = [socket.create_server(('127.0.0.1', 0)) for _ in range(2)]
    hosts = [f'127.0.0.1:{server.getsockname()[1]}' for server in sockets]
    for server in sockets:
        server.close()
    processes = [
        forks.Program(
            script,
            words,
            dict(
                CLEAN,
                TF_CONFIG=tf_config(dict(worker=hosts), index=rank),
                DREAMER_FAULT=fault,
            ),
            apart=True,
        )
        for rank, fault in enumerate(faults)
    ]
    try:
        printed = [process.finish(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return (
        [process.returncode for process in processes],
        printed,
        [process.errors.splitlines() for process in processes],
    )


@pytest.mark.slow
def test_two_machines_make_the_updates_of_one(tmp_path):
    codes, printed, errors = run_both('tests/scaling/two_machines.py', [tmp_path])
    assert codes == [0, 0], errors
    told = 'stopping: machine 1 was asked to'
    assert told in errors[0] and told not in errors[1]
    for rank, text in enumerate(printed):
        result = json.loads(text.splitlines()[-1])
        assert result['start'] == result['own'] == 0 and result['moved'] > 1e-4
        assert result['weight'] < 1e-5 and result['adam'] < 1e-4
        one, two = result['metrics']
        assert two == pytest.approx(one, rel=1e-4, abs=1e-5)
        assert result['gathered'] == [[0, 7], [1, 7]]
        # Worker 1 was asked to stop; both do, before the same update.
        assert result['phase'] == dict(batches=2, rows=2, stopped=True)
        # One bit of one weight.
        assert "machine 1's weights are not those of machine 0" in result['apart'], rank


@pytest.mark.slow
def test_a_run_that_loses_a_machine_is_saved_and_goes_on(tmp_path):
    """At its end, and after every phase, the machines compare their weights. They
    observe states.
    """
    logdir = tmp_path / 'run'
    words = [*short_run(logdir)[2:], *forks.QUICK]
    words += ['--steps', '300', '--observation', 'state']
    codes, _, errors = run_both('dreamer.py', words, ('', 'update:3'))
    assert codes == [1, -9]
    stopped, saved = errors[0]
    assert stopped.startswith('dreamer: stopped: machine 1 (127.0.0.1:')
    assert saved == 'dreamer: saved; the same command continues from here'
    episodes = set((logdir / 'episodes').iterdir())

    codes, printed, errors = run_both('dreamer.py', words)
    assert codes == [0, 0] and errors[1] == []
    assert 'resumed at step' in printed[0] and 'resumed' not in printed[1]
    assert printed[1].endswith('machine 1: machine 0 has ended the run\n')
    lines = list(read_metrics(logdir))
    last = [line for line in lines if 'gradient_step' in line][-1]
    assert (last['step'], last['gradient_step']) == (300, 6)
    assert episodes < set((logdir / 'episodes').iterdir())
