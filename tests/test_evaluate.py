"""evaluate.py on a run of the tests' own, through its command line."""

import hashlib
import json
import pathlib
import re
import shutil
import subprocess
import sys

import gymnasium
import imageio.v3
import numpy as np
import pytest
import tensorflow as tf
from conftest import CLEAN, ROOT
from PIL import Image, ImageSequence

import configs
import evaluate
import wrappers
from agent import Dreamer
from support.acting import workers
from support.acting.collector import Collector
from support.run import checkpoints, config_file, exporting
from support.system.command_line import UserError


def contents(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob('*')
        if path.is_file()
    }


def run(*words):
    return subprocess.run(
        [sys.executable, str(ROOT / 'evaluate.py'), *map(str, words)],
        env=CLEAN,
        text=True,
        capture_output=True,
        timeout=600,
    )


def duration(path):
    """Of a GIF [milliseconds]: equal frames that follow one another are one in it."""
    return sum(
        image.info['duration'] for image in ImageSequence.Iterator(Image.open(path))
    )


@pytest.mark.slow
def test_scores_and_videos_of_a_finished_run(finished, tmp_path):
    logdir = finished[0]
    before = contents(logdir)
    done = run(
        '--logdir',
        logdir,
        '--episodes',
        3,
        '--video',
        tmp_path / 'real.mp4',
        '--dream',
        tmp_path / 'dream.gif',
    )
    assert done.returncode == 0 and done.stderr == '', done.stderr
    assert contents(logdir) == before
    lines = done.stdout.splitlines()
    result = json.loads(lines[-1])
    returns = result['returns']
    printed = [
        float(re.match(r'episode \d+: return ([-\d.]+),', line)[1])
        for line in lines
        if line.startswith('episode ')
    ]
    assert len(returns) == 3 and printed == pytest.approx(returns, abs=0.051)
    assert result['mean'] == pytest.approx(sum(returns) / 3)
    variance = sum((score - result['mean']) ** 2 for score in returns) / 3
    assert result['std'] == pytest.approx(variance**0.5)
    assert f'mean {result["mean"]:.1f}, standard deviation' in lines[-2]
    assert (result['step'], result['gradient_step']) == (300, 2 + 2 * 2)
    assert result['lengths'] == [60] * 3 and result['task'] == 'dummy_continuous'
    assert imageio.v3.imread(tmp_path / 'real.mp4').shape == (61, 256, 256, 3)
    assert duration(tmp_path / 'dream.gif') == 50 * 100
    assert Image.open(tmp_path / 'dream.gif').size == (3 * 128, 16 + 3 * 128)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['dream.gif', 'real.mp4']


@pytest.mark.slow
def test_older_checkpoint_where_the_newest_is_damaged(finished, tmp_path, capsys):
    """And names of folders are not patterns."""
    logdir, video = tmp_path / r'a [b] \c', tmp_path / 'v [1]:2.mp4'
    shutil.copytree(finished[0], logdir)
    data = sorted((logdir / 'checkpoints').glob('ckpt-*.data*'))
    assert len(data) == 2
    damaged = data[-1].read_bytes()
    data[-1].write_bytes(damaged[: len(damaged) // 2])
    words = ['--logdir', str(logdir), '--episodes', '1']
    assert evaluate.main([*words, '--video', str(video)]) == 0
    assert imageio.v3.imread(video).shape == (61, 256, 256, 3)
    output = capsys.readouterr()
    result = json.loads(output.out.splitlines()[-1])
    # TensorFlow takes a name with brackets for a pattern.
    plain = finished[0] / 'checkpoints' / data[0].stem
    older = tf.train.load_variable(
        str(plain), 'agent/env_step/.ATTRIBUTES/VARIABLE_VALUE'
    )
    assert result['step'] == older < 300
    assert data[-1].name.split('.')[0] in output.err
    # Without any good one there is nothing to evaluate.
    data[0].write_bytes(b'')
    with pytest.raises(SystemExit) as error:
        evaluate.main(words)
    assert error.value.code == 2
    assert 'no checkpoint' in capsys.readouterr().err.splitlines()[-1]


def networks(agent):
    """All that an agent of images has learned, arrays."""
    parts = [*agent.world.parts, *agent.behavior.parts.values()]
    return [weight.numpy() for part in parts for weight in part.trainable_weights]


@pytest.mark.slow
def test_an_exported_agent_plays_as_its_run_does(finished, tmp_path, capsys):
    """The chosen checkpoint's; and a damaged one is refused in one line."""

    def play(*words):
        assert evaluate.main(['--episodes', '2', *map(str, words)]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    folder = tmp_path / 'agent'
    run = play('--logdir', finished[0], '--checkpoint', 1, '--export', folder)
    assert run['checkpoint'] == 'ckpt-1' and run['step'] < 300
    dream = tmp_path / 'dream.png'
    assert play('--logdir', folder, '--dream', dream) == dict(run, logdir=str(folder))
    assert dream.exists()
    agent, env, config = evaluate.load(folder, checkpoint=1)
    env.close()
    whole_agent = Dreamer(config, 2)
    checkpoints.Checkpoints(finished[0] / 'checkpoints', whole_agent).load(1)
    for old, new in zip(networks(whole_agent), networks(agent), strict=True):
        np.testing.assert_array_equal(old, new)
    assert agent.gradient_step == run['gradient_step'] and config.horizon == 16
    origin = json.loads((folder / 'origin.json').read_text())
    assert (origin['task'], origin['step']) == ('dummy_continuous', run['step'])
    assert origin['score']['returns'] == run['returns']
    assert origin['versions']['tensorflow'] == tf.__version__
    assert str(finished[0]) not in (folder / 'config.json').read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['agent', 'dream.png']
    (data,) = (folder / 'checkpoints').glob('*.data*')
    (whole,) = (finished[0] / 'checkpoints').glob('ckpt-1.data*')
    # Adam has two numbers for each weight.
    assert data.stat().st_size < 0.4 * whole.stat().st_size
    data.write_bytes(data.read_bytes()[:-100])
    words = ['--logdir', str(folder)]
    for path, expected in (
        (folder, 'no checkpoint'),
        (finished[0], 'there is no checkpoint 9 in .*; possible: 1, 2'),
    ):
        words = ['--logdir', str(path), '--checkpoint', '1' if path == folder else '9']
        with pytest.raises(SystemExit) as error:
            evaluate.main(words)
        (line,) = capsys.readouterr().err.splitlines()
        assert error.value.code == 2 and re.search(expected, line), line


def test_training_does_not_begin_in_an_exported_folder(tmp_path):
    (tmp_path / 'origin.json').touch()
    with pytest.raises(UserError, match='evaluate.py --logdir .* plays it'):
        exporting.refuse_to_train(tmp_path)


def write_config(folder, change=None):
    """A run's folder without a checkpoint; `change` may spoil its configuration."""
    path = folder / 'config.json'
    config_file.write(
        configs.parse(
            ['--task', 'dummy_continuous', '--configs', 'debug', '--parallel', 'none']
        ),
        folder,
    )
    stored = json.loads(path.read_text())
    if change:
        change(stored['config'])
    path.write_text(json.dumps(stored))


@pytest.mark.parametrize(
    'flags, change, words',
    [
        (['--logdir', '{}/none'], None, ['no folder', 'none']),
        ([], None, ['--logdir']),
        (
            ['--logdir', '{}', '--video', '{}/out.avi'],
            None,
            ['--video', '.gif or .mp4'],
        ),
        (
            ['--logdir', '{}', '--dream', '{}/a/b.gif'],
            None,
            ['--dream', 'no folder', '/a'],
        ),
        (['--logdir', '{}', '--export', '{}/runs'], None, ['runs exists']),
        (['--logdir', '{}', '--export', '{}/a/b'], None, ['no folder', '/a']),
        (['--logdir', '{}', '--checkpoint', '0'], None, ['--checkpoint', 'at least 1']),
        (['--logdir', '{}', '--video', '{}/x.png'], None, ['--video', '.gif or .mp4']),
        (['--logdir', '{}', '--dream', '{}/here.gif'], None, ['here.gif exists']),
        (
            ['--logdir', '{}', '--dream', '{}/x.gif', '--video', '{}/x.gif'],
            None,
            ['both'],
        ),
        (['--logdir', '{}', '--episodes', '0'], None, ['--episodes', 'from 1']),
        (['--logdir', '{}', '--seed', '-1'], None, ['--seed', 'at least 0']),
        (['--logdir', '{}', '--steps', '5'], None, ['--steps']),
        (['--logdir', '{}'], None, ['no checkpoint', 'checkpoints']),
        (['--logdir', '{}'], lambda config: config.pop('horizon'), ['has no horizon']),
        (['--logdir', '{}'], lambda config: config.update(size=3), ['unknown', 'size']),
        (['--logdir', '{}'], lambda config: config.update(task='dummy_x'), ['dummy_x']),
        (['--logdir', '{}/empty'], None, ['no run in', 'config.json', 'below it: no']),
        (['--logdir', '{}/runs'], None, ['/runs/a/0, ', '/runs/e, 2 more']),
    ],
)
def test_bad_input_is_one_line(tmp_path, capfd, flags, change, words):
    write_config(tmp_path, change)
    (tmp_path / 'empty').mkdir()
    for name in 'a/0', 'b', 'c', 'd', 'e', 'f', 'g':
        (tmp_path / 'runs' / name).mkdir(parents=True)
        (tmp_path / 'runs' / name / 'metrics.jsonl').touch()
    (tmp_path / 'here.gif').write_bytes(b'kept')
    before = contents(tmp_path)
    with pytest.raises(SystemExit) as error:
        evaluate.main([flag.format(tmp_path) for flag in flags])
    lines = capfd.readouterr().err.splitlines()
    assert error.value.code == 2 and len(lines) == 1, lines
    assert lines[0].startswith('evaluate: error: ')
    for word in words:
        assert word in lines[0]
    assert contents(tmp_path) == before


def test_settings_that_later_versions_add_have_their_defaults(tmp_path):
    write_config(tmp_path, lambda config: config.pop('verbose'))
    config = config_file.read(tmp_path)
    assert config.verbose is False and config.deter_size == 16


def test_episodes_follow_from_the_seed():
    """The same seed plays the same episodes, none of which training has played."""
    (env,) = workers.make_workers('dummy_continuous', 1, dict(time_limit=5), 'none')

    def starts(collector):
        still = np.zeros((1, 2), np.float32)
        images = []
        while len(images) < 3:
            images += [
                episode['image'][0].tobytes()
                for episode in collector.step(lambda observation, is_first: still)[1]
            ]
        return images

    def evaluation(seed):
        return starts(evaluate.make_collector(env, seed))

    assert evaluation(0) == evaluation(0)
    assert not {*evaluation(0)} & {*evaluation(1)}
    assert not {*evaluation(0)} & {*starts(Collector([env], 0))}


class Knowing:
    """A model that knows the truth while it sees it, and nothing later."""

    class config:
        observes = ('image',)

    def openloop(self, data, context):
        model = np.float32(data['image']) / 255
        model[:, context:] = 0
        return {'image': model}


def counted(rows):
    """An episode whose images are as bright as their number, from 100 on."""
    images = np.full((rows, 64, 64, 3), 0, np.uint8)
    images += 100 + np.arange(rows, dtype=np.uint8)[:, None, None, None]
    return dict(image=images, action=np.zeros((rows, 2)), reward=np.zeros(rows))


def test_dream_shows_context_then_imagination():
    frames = evaluate.dream(Knowing(), counted(120))
    assert frames.shape == (50, 16 + 3 * 128, 3 * 128, 3)
    for row, start in enumerate((0, 35, 70)):
        tile = frames[:, 16 + 128 * row + 64]
        for t in (0, 4, 5, 49):
            real = 100 + start + t
            assert tile[t, 64, 0] == real
            assert tile[t, 128 + 64, 0] == (real if t < 5 else 0)
            # Grey where there is no error.
            error = 128 if t < 5 else (255 - real) / 2
            assert abs(int(tile[t, 256 + 64, 0]) - error) <= 0.5


@pytest.mark.parametrize('rows, shown', [(120, 10), (50, 10), (24, 4), (6, 1)])
def test_a_strip_shows_predicted_images_below_the_true_ones(tmp_path, rows, shown):
    path = tmp_path / 'strip.png'
    evaluate.write_dream(path, Knowing(), counted(rows))
    picture = imageio.v3.imread(path)
    assert picture.shape == (16 + 2 * 128, shown * 128, 3)
    numbers = [6, 10, 15, 20, 25, 30, 35, 40, 45, 50][:shown]
    assert picture[16 + 64, 64::128, 0].tolist() == [99 + x for x in numbers]
    assert not picture[16 + 128 + 64, 64::128].any()


class Growing(gymnasium.Env):
    """The first episode has 2 steps, every other 4 more than the one before."""

    metadata = {'render_modes': ['rgb_array']}
    action_space = gymnasium.spaces.Discrete(3)
    observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    length = -6  # Its images are looked at when it is made, by a reset.

    def __init__(self, render_mode=None):
        pass

    def reset(self, *, seed=None, options=None):
        self.length, self.time = self.length + 4, 0
        return np.zeros((64, 64, 3), np.uint8), {}

    def step(self, action):
        self.time += 1
        image = np.full((64, 64, 3), 20 * self.time, np.uint8)
        return image, 1.0, self.time == self.length, False, {}


@pytest.mark.slow
def test_the_first_episode_that_is_long_enough_is_dreamt(tmp_path, capsys):
    gymnasium.register('Growing-v0', Growing)
    config = configs.parse(
        [
            '--task',
            'gym_Growing-v0',
            '--configs',
            'debug',
            '--parallel',
            'none',
            '--precision',
            '32',
        ]
    )
    config_file.write(config, tmp_path)
    agent = Dreamer(
        configs.fit_to_actions(
            config,
            isinstance(wrappers.make(config.task).action_space, wrappers.OneHotSpace),
        ),
        3,
    )
    checkpoints.Checkpoints(tmp_path / 'checkpoints', agent).save({})
    words = ['--logdir', str(tmp_path), '--dream', str(tmp_path / 'dream.gif')]
    # One episode is too short; what it scored is told all the same.
    with pytest.raises(SystemExit) as error:
        evaluate.main([*words, '--episodes', '1'])
    output = capsys.readouterr()
    assert error.value.code == 2 and len(output.err.splitlines()) == 1
    assert '--dream needs an episode of 5 steps' in output.err
    assert json.loads(output.out.splitlines()[-1])['returns'] == [2]
    assert evaluate.main([*words, '--episodes', '3']) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result['lengths'] == [2, 6, 10] and result['returns'] == [2, 6, 10]
    assert duration(tmp_path / 'dream.gif') == 7 * 100


@pytest.mark.parametrize(
    'change, problem',
    [({'task': 'dummy_discrete'}, 'can be used'), ({'task': 'dummy_x'}, 'dummy_x')],
)
def test_what_does_not_fit_the_run_is_refused_and_leaves_no_process(
    finished, change, problem
):
    before = set(children())
    with pytest.raises(ValueError, match=problem) as error:
        evaluate.load(finished[0], **change)
    assert len(str(error.value).splitlines()) == 1
    assert set(children()) <= before


def children():
    """Ids of the processes that this one has started."""
    for path in pathlib.Path('/proc/self/task').glob('*/children'):
        yield from path.read_text().split()
