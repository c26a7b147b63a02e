"""What a run prints, with and without a terminal, and what TensorBoard shows of it."""

import dataclasses
import fcntl
import io
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import termios
import time

import numpy as np
import pytest
import tensorflow as tf
from conftest import CLEAN, LARGE, short_run
from rich.console import Console

import configs
from agent import Dreamer
from support.envs import rendering
from support.run import advice, logger, progress, startup
from support.storage import finished as statement
from support.storage.metrics import read as read_metrics

COLOUR = re.compile(r'\x1b\[[0-9;]*(3|4|9|10)[0-7]m')


@pytest.fixture(autouse=True)
def no_renderer(monkeypatch):
    """Other tests of this process may have chosen one, for which there is advice."""
    monkeypatch.setattr(rendering, 'renderer_in_use', lambda: '')


def config_for(tmp_path, *flags):
    return configs.parse(['--logdir', str(tmp_path), '--precision', '32', *flags])


def test_durations():
    seconds = [0, 7, 65, 3600, 3723, 172799, 172800 + 3 * 3600]
    assert [advice.duration(s) for s in seconds] == [
        '0:00',
        '0:07',
        '1:05',
        '1:00:00',
        '1:02:03',
        '47:59:59',
        '2 d 3 h',
    ]


@pytest.fixture
def clock(monkeypatch):
    """The time that progress reads, a list of one number."""
    now = [100.0]
    monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
    return now


def measured(config, clock, output=None, phases=(), updates=4):
    """Progress that saw 8 steps a second, then 2 updates a second, and further
    `phases`: name, steps, seconds of each.
    """
    shown = progress.Progress(
        config, console=Console(file=output or io.StringIO(), width=300)
    )
    for name, steps, each in (
        ('prefill', 100, 0.125),
        ('pretraining', updates, 0.5),
        *phases,
    ):
        shown.start(name, steps)
        for _ in range(steps):
            clock[0] += each
            shown.advance()
    return shown


SCHEDULE = (
    '--task dummy_continuous --steps 1100 --prefill 100 --train_every 100 '
    '--train_steps 6 --pretrain 4'
).split()
TIMED = ('collecting', 11, 0.25), ('training', 11, 1)


def test_remaining_time_is_what_is_left_by_the_rates(tmp_path, clock):
    config = config_for(tmp_path, *SCHEDULE)
    # Neither prefill nor pretraining says how fast the phases to come are.
    assert measured(config, clock).remaining(100) is None
    assert measured(config, clock, phases=TIMED[:1]).remaining(100) is None
    shown = measured(config, clock, phases=TIMED)
    # 1000 steps of 1/4 s, and 10 phases of 6 updates of 1 s.
    assert shown.remaining(100) == 250 + 60
    assert shown.remaining(1100) == 0


def test_remaining_time_forgets_that_the_run_was_suspended(tmp_path, clock):
    shown = measured(config_for(tmp_path, *SCHEDULE), clock, phases=TIMED)
    shown.start('training', 2000)
    clock[0] += 3600
    for _ in range(2000):
        clock[0] += 1
        shown.advance()
    assert 250 + 60 <= shown.remaining(100) < 1.2 * (250 + 60)


@pytest.mark.parametrize(
    'flags, lengths, phases',
    [
        ('--time_limit 250', [], 4),
        ('--time_limit 250 --pcont true', [], 10),  # Nobody knows how long they are.
        ('--time_limit 250 --pcont true --action_repeat 2', [60, 100], 6.25),
        ('--time_limit 50', [], 10),
        ('--time_limit 50', [25, 25], 10),  # The phase waits for its steps.
    ],
)
def test_remaining_time_where_phases_wait_for_episodes(
    tmp_path, clock, flags, lengths, phases
):
    config = config_for(tmp_path, *SCHEDULE, '--train_episodes', '1', *flags.split())
    shown = measured(config, clock, phases=TIMED)
    for length in lengths:
        shown.episode(1.0, length)
    assert shown.remaining(100) == 250 + 6 * phases


def test_a_run_that_has_finished_says_so(tmp_path):
    config = config_for(tmp_path, '--steps', '6000')
    assert progress.steps_left(config, 0) == '6,000 to go, 0 of 6,000 done'
    done = '0 to go, 6,000 of 6,000 done'
    assert progress.steps_left(config, 6000) == f'{done}; not finished'
    statement.state(tmp_path, 6000)
    assert progress.steps_left(config, 6000) == f'{done}; finished'
    config = config_for(tmp_path, '--steps', '6001')
    assert progress.steps_left(config, 6000) == '1 to go, 6,000 of 6,001 done'


def test_lines_of_phases(tmp_path, clock):
    config = config_for(tmp_path, '--task', 'dummy_continuous', '--log_every', '40')
    output = io.StringIO()
    measured(config, clock, output).finish()
    assert output.getvalue().splitlines() == [
        'prefill: 100 steps',
        'prefill: 40/100 steps, 8 steps/s, 0:07 left',
        'prefill: 80/100 steps, 8 steps/s, 0:02 left',
        'prefill: 100 steps done in 0:12',
        'pretraining: 4 steps',
        'pretraining: 4 steps done in 0:02',
    ]


def test_a_prefill_that_goes_on_to_an_episodes_end(tmp_path, clock):
    output = io.StringIO()
    shown = progress.Progress(
        config_for(tmp_path, '--log_every', '10'), console=Console(file=output)
    )
    shown.start('prefill', 20)
    for _ in range(35):
        clock[0] += 1
        shown.advance()
    shown.finish()
    assert output.getvalue().splitlines() == [
        'prefill: 20 steps',
        'prefill: 10/20 steps, 1 steps/s, 0:10 left',
        'prefill: 30 steps, 1 steps/s',
        'prefill: 35 steps done in 0:35',
    ]


def test_a_slow_phase_speaks_once_a_minute(tmp_path, clock):
    output = io.StringIO()
    shown = progress.Progress(
        config_for(tmp_path), console=Console(file=output, width=200)
    )
    shown.start('training', 100, 'updates')
    for _ in range(30):
        clock[0] += 9
        shown.advance()
    lines = output.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[0] == 'training: 7/100 updates, 0.111 updates/s, 13:57 left'


@pytest.mark.parametrize(
    'values, shown',
    [
        (dict(action_ent=1.5), 'KL 2.5, reward loss 0.92, entropy 1.5'),
        (
            dict(action_ent=1.5, action_ent_share=0.42),
            'KL 2.5, reward loss 0.92, entropy 42%',
        ),
        ({}, 'KL 2.5, reward loss 0.92'),  # A planner has no actor.
    ],
)
def test_a_log_line_has_what_tells_something(tmp_path, values, shown):
    output = io.StringIO()
    console = Console(file=output, width=300)
    lines = progress.Progress(config_for(tmp_path, '--steps', '10000'), console)
    lines.episode(3.0, 10)
    losses = dict(model_loss=12_680.0, div=2.5, reward_loss=0.92, actor_loss=-3.0)
    lines.log(100, dict(losses, **values, fps=2.0, updates_per_s=1.0))
    assert output.getvalue() == (
        f'step 100/10,000 (1%): train return 3.0, {shown}, 2 steps/s, 1 updates/s\n'
    )


def test_the_bar_has_text_from_the_first_second(tmp_path):
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=100)
    config = config_for(tmp_path, '--steps', '10000')
    with progress.Progress(config, console=console) as shown:
        shown.start('evaluating', None)
    assert '0/10,000 (0%) steps' in output.getvalue()


def test_a_run_for_days_without_a_gpu_is_told_of_small(tmp_path):
    paper = config_for(tmp_path)
    text = advice.advise_small(paper, 499_600)
    assert 'takes days: 499,600 updates' in text and '--configs small' in text
    assert 'takes 10 hours' in advice.advise_small(paper, 12_000)
    assert advice.advise_small(paper, 1000) is None
    assert advice.advise_small(config_for(tmp_path, '--configs', 'small'), 1e6) is None


@pytest.mark.parametrize('gpus', [(), ['A100']])
@pytest.mark.parametrize('quality', ['standard', 'fast'])
def test_slow_rendering_has_advice_that_can_be_followed(
    tmp_path, monkeypatch, gpus, quality
):
    monkeypatch.setattr(advice, 'renderer', lambda: 'egl, llvmpipe (LLVM 15.0.7)')
    config = config_for(tmp_path, '--render_quality', quality)
    text = advice.advise_rendering(config, 20, gpus) or ''
    assert ('NVIDIA_DRIVER_CAPABILITIES=all' in text) == bool(gpus)
    assert ('--render_quality fast' in text) == (quality == 'standard')
    assert advice.advise_rendering(config, 1000, gpus) is None


def test_rendering_is_judged_by_the_prefill(tmp_path, monkeypatch, clock):
    monkeypatch.setattr(advice, 'renderer', lambda: 'egl, llvmpipe (LLVM 15.0.7)')
    output = io.StringIO()
    measured(config_for(tmp_path), clock, output).finish()
    # 8 simulator steps a second, 2 for a frame.
    assert output.getvalue().count('advice: 4 frames a second') == 1


@pytest.mark.parametrize('precision', ['32', '16', 'bfloat16'])
@pytest.mark.parametrize('automatic', [True, False])
def test_header_tells_who_chose_the_precision(
    tmp_path, monkeypatch, precision, automatic
):
    """And advises against bfloat16 on a processor that lacks it."""
    if tf.config.list_physical_devices('GPU'):
        pytest.skip('about processors')
    monkeypatch.setattr(startup, 'cpu_flags', lambda: ['avx2', 'avx512f'])
    flags = '--task', 'dummy_continuous', '--configs', 'debug'
    config = config_for(tmp_path, *flags, '--precision', precision)
    output = io.StringIO()
    console = Console(file=output, width=300)
    shown = progress.Progress(config, console, automatic=automatic)
    shown.header(Dreamer(config, 2), 12_304, 0)
    lines = output.getvalue().splitlines()
    (device,) = (line for line in lines if line.startswith('device'))
    name = {'16': 'float16', '32': 'float32'}.get(precision, precision)
    chosen = ', chosen by --precision auto' if automatic else ''
    assert device.endswith(f'; {name}{chosen}')
    advice = [line for line in lines if 'emulates bfloat16' in line]
    assert len(advice) == (precision == 'bfloat16')


def test_certain_actor_is_told_once_and_only_where_returns_do_not_rise(tmp_path):
    output = io.StringIO()
    shown = progress.Progress(
        config_for(tmp_path, '--task', 'dummy_discrete'),
        Console(file=output, width=300),
    )
    values = dict(fps=1.0, updates_per_s=1.0, action_ent_share=0.01)

    def log(scores, share):
        (tmp_path / 'metrics.jsonl').write_text(
            ''.join(
                json.dumps({'step': step, 'train/return': score}) + '\n'
                for step, score in enumerate(scores)
            )
        )
        shown.log(100, dict(values, action_ent_share=share))
        return output.getvalue().count('advice: the actor is certain')

    assert log([9] * 19, 0.01) == 0  # Too few to tell.
    assert log([9] * 20 + [20] * 20, 0.01) == 0
    assert log([9] * 40, 0.2) == 0
    assert log([9] * 40, 0.01) == 1
    assert log([9] * 40, 0.01) == 1
    assert '--configs tuned' in output.getvalue()


def test_tuned_is_advised_where_discrete_actions_have_the_papers_settings(tmp_path):
    def advised(task, *flags):
        config = config_for(tmp_path, '--task', task, *flags)
        config = configs.fit_to_actions(config, not task.startswith('dmc'))
        return advice.advise_tuned(config)

    for task in 'atari_pong', 'dmlab_rooms_watermaze':
        assert '--configs tuned' in advised(task)
        assert advised(task, '--configs', 'tuned') is None
    assert advised('dmc_walker_walk') is None


def test_means_of_metrics_of_two_versions():
    rows = [{'old': 2.0, 'both': 1.0}, {'both': 3.0}, {'both': np.inf, 'bad': np.nan}]
    means = logger.means(rows)
    assert (means['old'], means['both']) == (2, 2) and np.isnan(means['bad'])
    assert logger.means([]) == {}


def test_replay_by_the_end_of_the_run(tmp_path):
    config = config_for(tmp_path, '--replay_memory', '4e9')
    # 2.5e6 images of 12,288 bytes, and 8 numbers beside each.
    assert progress.replay_size(config, 12_320) == (
        'by the end 30.8 GB on disk, 4 GB in memory'
    )
    kept = dataclasses.replace(config, replay_capacity=200_000)
    assert progress.replay_size(kept, 12_320) == (
        'by the end 1.23 GB on disk, 1.23 GB in memory'
    )
    assert progress.replay_bytes(kept, 12_320, 10**15) == 1.232e9
    assert advice.advise_disk(config, 1000) is None
    assert 'episodes to come take 1e+09 GB' in advice.advise_disk(config, 1e18)


@pytest.mark.parametrize('no_color', [False, True])
def test_colours_of_the_bars(tmp_path, monkeypatch, no_color):
    monkeypatch.delenv('NO_COLOR', raising=False)
    if no_color:
        monkeypatch.setenv('NO_COLOR', '1')
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, color_system='truecolor')
    with progress.Progress(config_for(tmp_path), console=console) as shown:
        shown.start('collecting', 10)
        shown.advance(5)
    assert 'collecting' in output.getvalue()
    assert bool(COLOUR.search(output.getvalue())) != no_color


@pytest.mark.parametrize(
    'words, wanted',
    [
        ([], False),
        (['--verbose'], True),
        (['--verbose', 'false'], False),
        (['--verbose=false'], False),
        (['--verbose', 'true', '--jit', 'false'], True),
        (['--verbose', '--jit', 'false'], True),
        (['--verbose', '--verbose=false'], False),
    ],
)
def test_chatter_is_asked_for(words, wanted):
    assert startup.asked_for_chatter(words) == wanted


def test_what_is_caught_is_printed_after_an_error(capfd):
    with startup.caught_stderr():
        os.write(2, b'chatter\n')
    assert capfd.readouterr().err == ''
    with pytest.raises(ImportError), startup.caught_stderr():
        os.write(2, b'the reason\n')
        raise ImportError
    os.write(2, b'after\n')
    assert capfd.readouterr().err == 'the reason\nafter\n'


@pytest.mark.slow
def test_plain_lines_without_a_terminal(finished):
    logdir, output, errors = finished
    lines = output.splitlines()
    assert errors == '' and '\x1b' not in output and '\r' not in output
    header = dict(line.split(maxsplit=1) for line in lines[:7])
    assert list(header) == [
        'task',
        'method',
        'device',
        'parameters',
        'steps',
        'replay',
        'logs',
    ]
    assert header['task'] == 'dummy_continuous, seed 0'
    assert header['method'] == 'dreamer, reconstruction'
    assert header['device'].endswith('; float32, chosen by --precision auto')
    assert re.fullmatch(
        r'model [\d,]+, actor [\d,]+, value [\d,]+', header['parameters']
    )
    assert header['steps'] == '300 to go, 0 of 300 done'
    assert header['replay'].startswith('by the end 3.69 MB on disk')
    assert str(logdir) in header['logs']
    logged = [line for line in lines if re.match(r'step [\d,]+/300 ', line)]
    rows = list(read_metrics(logdir))
    assert len(logged) == len([row for row in rows if 'model_loss' in row]) == 3
    for line in logged:
        assert re.search(r'train return .*KL .*entropy .* updates/s', line), line
        # Not before collecting and training have both been timed.
        assert line.endswith(' left') == (line != logged[0]), line
    evaluated = [line for line in lines if 'evaluation return' in line]
    scores = [row['test/return'] for row in rows if 'test/return' in row]
    assert len(evaluated) == len(scores) >= 2
    for i, line in enumerate(evaluated):
        assert f'return {scores[i]:.1f}, ' in line
        assert f'best so far {max(scores[: i + 1]):.1f} ' in line
    # A slow machine has a line a minute too.
    assert lines[-1].startswith('finished: saved at step 300; ')
    phases = [line for line in lines[7:-1] if not re.match(r'step |\w+: \d+/', line)]
    assert [line.split(' in ')[0] for line in phases] == [
        'prefill: 100 steps',
        'prefill: 100 steps done',
        'pretraining: 2 updates',
        'pretraining: 2 updates done',
    ]


def read_terminal(command, until, **env):
    """Runs `command` on a terminal of 150 columns, stops it with SIGTERM once the
    patterns `until` have been printed; returns the exit code and all output.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('HHHH', 40, 150, 0, 0))
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**CLEAN, 'TERM': 'xterm-256color', **env},
    )
    os.close(theirs)
    output, stopped, deadline = '', False, time.monotonic() + 600
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 1)[0]:
            try:
                output += os.read(ours, 65536).decode(errors='replace')
            except OSError:  # The other end is closed.
                break
        if not stopped and all(re.search(pattern, output) for pattern in until):
            process.send_signal(signal.SIGTERM)
            stopped = True
    os.close(ours)
    return process.wait(300), output


@pytest.mark.slow
def test_bars_and_advice_on_a_terminal(finished, tmp_path):
    logdir = tmp_path / 'run'
    shutil.copytree(finished[0], logdir)
    collecting = r'collecting .* \d+/100 steps, .* steps/s, .* left'
    gpus = tf.config.list_physical_devices('GPU')
    told = [r'profile: 10 updates recorded'] + ['advice: without a GPU'] * (not gpus)
    code, output = read_terminal(
        [*short_run(logdir), *LARGE, '--steps', '1e12', '--profile'],
        [collecting, *told],
        NO_COLOR='1',
    )
    assert code == 0, output
    assert output.count('profile: ') == 1
    (profile,) = (logdir / 'plugins' / 'profile').rglob('*.xplane.pb')
    assert profile.stat().st_size > 10_000
    assert 'resumed at step 300' in output
    assert '999,999,999,700 to go, 300 of 1,000,000,000,000 done' in output
    assert 'advice: the episodes to come take 1.23e+07 GB' in output
    assert 'stopping: saving first' in output
    assert re.search(collecting, output) and '━' in output
    assert not COLOUR.search(output)
    assert output.count('advice: without a GPU') == (not gpus)
    # A second interrupt would leave a hidden cursor behind.
    assert output.rfind('\x1b[?25h') > output.rfind('\x1b[?25l')
    first, later = (
        list(map(float, re.findall(r'best so far (\S+)', text)))
        for text in (finished[1], output)
    )
    assert all(score >= first[-1] for score in later)


@pytest.mark.slow
def test_tensorboard_shows_the_run(finished):
    """As TensorBoard itself reads it; looked at in a browser by hand."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(finished[0]), size_guidance={'tensors': 0})
    events.Reload()
    tags = events.Tags()['tensors']
    assert {tag.split('/')[0] for tag in tags} - {'_hparams_'} == {
        'train',
        'eval',
        'model',
        'actor',
        'value',
        'time',
        'replay',
        'videos',
        'config',
    }
    returns = [
        (event.step, float(make_ndarray(event.tensor_proto)))
        for event in events.Tensors('eval/return')
    ]
    rows = list(read_metrics(finished[0]))
    assert returns == [
        (row['step'], pytest.approx(row['test/return']))
        for row in rows
        if 'test/return' in row
    ]
    written = {key for row in rows for key in row} - {'step'}
    assert written <= {*logger.TAGS}
    assert {logger.TAGS[key] for key in written} <= {*tags}
    assert {'actor/loss', 'value/loss', 'model/kl', 'time/train'} <= {*tags}
    settings = plugin_data_pb2.HParamsPluginData.FromString(
        events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    ).session_start_info.hparams
    assert settings['task'].string_value == 'dummy_continuous'
    assert settings['horizon'].number_value == 16
    text = make_ndarray(events.Tensors('config')[0].tensor_proto).item().decode()
    assert '| task | dummy_continuous |' in text and '| horizon | 16 |' in text
    for name in 'eval', 'openloop':
        width, height, gif = make_ndarray(
            events.Tensors(f'videos/{name}')[0].tensor_proto
        )
        assert gif.startswith(b'GIF8') and int(width) % 64 == int(height) % 64 == 0
