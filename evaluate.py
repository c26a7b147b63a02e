"""Evaluate a checkpoint of a run and show what the agent does and dreams.

    python evaluate.py --logdir ./logs/walker --episodes 10 --video out.mp4

Prints the return of every episode, then their mean and population standard deviation.
The last line is one JSON object with all results. The program only reads the run's
folder, and can be used while the run is training.

Shapes: T rows of an episode, B sequences, L length.
"""

import dataclasses
import json
import pathlib
import signal
import sys

if sys.flags.safe_path:  # Then Python does not look for modules beside this file.
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from support.system import atomic, command_line, signals, streams, temporary

if __name__ == '__main__':
    streams.protect()
    # Ctrl-C ends the program silently.
    signals.end_by(*signals.ASKING)
    temporary.provide('evaluate')

import configs
from support.run.evaluation import CONTEXT, STRIP, parse

if __name__ == '__main__':
    # Report mistakes before the import of TensorFlow, which takes seconds.
    with command_line.refusing('evaluate'):
        parse(sys.argv[1:])

from support.acting.collector import Collector
from support.run import startup  # noqa: F401 (first: it imports TensorFlow without its chatter)

# isort: split
import imageio.v3
import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw

import tools
import wrappers
from agent import Dreamer, Policy
from support.acting import workers
from support.run import checkpoints, config_file, exporting, openloop, video
from support.scores.runs import run_folders
from support.system.command_line import UserError

# An Atari game can last for half an hour.
LONGEST_VIDEO = 2000
DREAM = 50  # frames of a dream
# Images of a strip, counted from 1, as in figure 5 of the paper.
STRIP_IMAGES = (6, *range(10, DREAM + 1, 5))


def load_checkpoint(agent, folder, number=None):
    """Load the newest checkpoint in `folder` that is whole and fits the agent, or the
    checkpoint of this number, without a change to `folder`. Return its path. Raise
    UserError if there is none.
    """
    problems = []
    for path, _ in checkpoints.find_whole(
        folder, lambda path, reason: problems.append(f'{path}: {reason}'), number
    ):
        try:
            checkpoints.load_weights(agent, path)
        except UserError as error:
            problems.append(error)
            continue
        for problem in problems:
            print(f'evaluate: cannot be used: {problem}', file=sys.stderr)
        return path
    if problems:
        raise UserError(f'no checkpoint in {folder} can be used ({problems[-1]})')
    there = [str(checkpoints.number_of(path)) for path in checkpoints.find(folder)]
    if there:
        raise UserError(
            f'there is no checkpoint {number} in {folder}; possible: {", ".join(there)}'
        )
    raise UserError(
        f'there is no checkpoint in {folder}; the run saves one '
        'every --save_every steps, and when it ends'
    )


def build(logdir, **changes):
    """Build the agent of a run, without its weights, and an environment.

    Args:
      logdir: folder of the run, which is only read.
      changes: settings that replace the run's settings, by the names of their flags.

    Returns:
      `Dreamer`; a worker with an environment, which the caller closes; `Config`, fitted
      to this machine and to the environment.

    Raises:
      ValueError, RuntimeError, OSError: one of them cannot be made.
    """
    logdir = pathlib.Path(logdir)
    if not config_file.exists(logdir):
        raise UserError(_no_run(logdir))
    config = config_file.read(logdir)
    # The run may have had a GPU that this machine lacks, or the other way round.
    config = dataclasses.replace(config, **{'precision': 'auto', **changes})
    config, devices = startup.set_up_devices(config)
    (env,) = workers.make_envs(config, 0, 1, devices)
    try:
        config = configs.fit_to_actions(
            config, isinstance(env.action_space, wrappers.OneHotSpace)
        )
        (action_size,) = env.action_space.shape
        agent = Dreamer(config, action_size, state_size=workers.state_size(env))
        return agent, env, config
    except BaseException:
        env.close()
        raise


def _no_run(folder, most=5):
    """Say that `folder` is no run, and name up to `most` runs below it."""
    runs = [str(run) for run in run_folders(folder, [], set())]
    runs = runs[:most] + [f'{len(runs) - most} more'] * (len(runs) > most)
    return (
        f'there is no run in {folder}, which has no config.json; below it: '
        f'{", ".join(runs) or "none"}'
    )


def load(logdir, checkpoint=None, **changes):
    """Load a trained agent for use from Python: `build` and `load_checkpoint`. It takes
    the arguments, returns the values and raises the errors of both.
    """
    agent, env, config = build(logdir, **changes)
    try:
        load_checkpoint(agent, pathlib.Path(logdir) / 'checkpoints', checkpoint)
    except BaseException:
        env.close()
        raise
    return agent, env, config


def make_collector(env, seed):
    """Make a collector. Its episodes differ from training's with the same `seed`."""
    return Collector([env], tools.spawn_seed(seed, 'evaluate'))


def episodes(agent, env, seed):
    """Yield episodes without exploration, as dicts of arrays [T, ...], endlessly."""
    collector = make_collector(env, seed)
    policy = Policy(agent, 1, training=False)
    while True:
        yield from collector.step(policy)[1]


def predict(agent, episode, sequences):
    """Predict up to `sequences` [B] parts of `episode`, of at most `DREAM` rows [L].
    Return their data and the predictions of `Dreamer.openloop`, dicts of [B, L, ...].

    The model observes the first `CONTEXT` rows and imagines the others. `episode` must
    have more rows than that.
    """
    rows = len(episode['reward'])
    length = min(rows, DREAM)
    starts = sorted({*np.linspace(0, rows - length, sequences).astype(int).tolist()})
    data = {
        key: np.stack([episode[key][start : start + length] for start in starts])
        for key in (*agent.config.observes, 'action', 'reward')
    }
    data['is_first'] = np.zeros((len(starts), length), bool)
    data['is_first'][:, 0] = True
    return data, {
        name: np.asarray(x) for name, x in agent.openloop(data, CONTEXT).items()
    }


def predict_images(agent, episode, sequences):
    """Return `predict` as uint8 [L, B, 3, 64, 64, 3]: image, prediction and error."""
    data, predicted = predict(agent, episode, sequences)
    return openloop.compare_images(data['image'], predicted['image'])


def dream(agent, episode, sequences=3):
    """Draw frames [L, H, W, 3] uint8 with a row of real image, prediction and error for
    each of up to `sequences` parts of `episode`.
    """
    rows = predict_images(agent, episode, sequences).transpose(0, 1, 3, 2, 4, 5)
    return np.stack(
        [
            label(
                frame, ('real', 'model, seen' if t < CONTEXT else 'imagined', 'error')
            )
            for t, frame in enumerate(
                video.enlarge(rows.reshape(len(rows), -1, 3 * 64, 3))
            )
        ]
    )


def strip(agent, episode):
    """Draw a picture [H, W, 3] uint8: the images of `episode` at `STRIP_IMAGES`, above
    the predictions of them.
    """
    pairs = predict_images(agent, episode, 1)[:, 0, :2]
    numbers = [number for number in STRIP_IMAGES if number <= len(pairs)]
    images = pairs[np.array(numbers) - 1].transpose(1, 2, 0, 3, 4)
    picture = images.reshape(1, 2 * 64, len(numbers) * 64, 3)
    return label(video.enlarge(picture)[0], tuple(map(str, numbers)))


def label(frame, names, height=16):
    """Put a line with the names of its columns above `frame` [H, W, 3]."""
    image = Image.new('RGB', (frame.shape[1], height + frame.shape[0]))
    image.paste(Image.fromarray(frame), (0, height))
    draw = ImageDraw.Draw(image)
    for i, name in enumerate(names):
        draw.text((i * frame.shape[1] // len(names) + 4, 2), name, 'white')
    return np.asarray(image)


def write_dream(path, agent, episode):
    """Write a `strip` to a .png and a `dream` to a video, by the suffix of `path`.
    Without images, write a plot of state vectors.
    """
    if 'image' not in agent.config.observes:
        data, predicted = predict(agent, episode, 3)
        plot = openloop.plot(data['state'], predicted['state'], CONTEXT)
        atomic.write(path, plot)
        print(f'written: {path}', flush=True)
    elif path.suffix == STRIP:
        picture = strip(agent, episode)
        atomic.write(path, imageio.v3.imwrite('<bytes>', picture, extension=STRIP))
        print(f'written: {path}', flush=True)
    else:
        write_video(path, dream(agent, episode), 10)


def write_video(path, frames, fps):
    """Write a video, and say so."""
    video.write(path, frames, fps)
    print(f'written: {path}', flush=True)


def check_pictures(args, agent, env):
    """Raise UserError if --dream or --video cannot be drawn."""
    if args.dream and not agent.world.decoders:
        raise UserError(
            '--dream needs a decoder, and the run was started with --log_images false'
        )
    observes = agent.config.observes
    if args.dream and 'image' not in observes and args.dream.suffix != STRIP:
        raise UserError(
            f'--dream is a plot where no images are observed, and {args.dream} does '
            f'not end in {STRIP}'
        )
    if args.video and 'image' not in env.observation_space.spaces:
        raise UserError(
            f'--video needs images, and {agent.config.task} cannot be rendered here'
        )


def evaluate(agent, env, args):
    """Play, print, write the videos; return returns and lengths [agent steps]."""
    scores, lengths, dreamt = [], [], None
    for number, episode in zip(
        range(args.episodes), episodes(agent, env, args.seed), strict=False
    ):
        scores.append(float(episode['reward'].sum()))
        lengths.append(len(episode['reward']) - 1)
        print(
            f'episode {number + 1}: return {scores[-1]:.1f}, length {lengths[-1]}',
            flush=True,
        )
        if not number and args.video:
            write_video(
                args.video, video.enlarge(episode['image'][:LONGEST_VIDEO], 4), 20
            )
        if dreamt is None and lengths[-1] >= CONTEXT:
            dreamt = episode
    # The dream comes last, because its noise must not change the episodes.
    if args.dream and dreamt is not None:
        write_dream(args.dream, agent, dreamt)
    return scores, lengths


def main(argv=None):
    """Run the command line; return the exit code."""
    try:
        args = parse(argv)
        logdir = pathlib.Path(args.logdir)
        agent, env, config = build(logdir, eval_video=bool(args.video))
    except (ValueError, RuntimeError, OSError) as error:
        command_line.fail(error, 'evaluate')
    try:
        check_pictures(args, agent, env)
        checkpoint = load_checkpoint(agent, logdir / 'checkpoints', args.checkpoint)
        print(
            f'{config.task}: {checkpoint.name} of {logdir}, step {agent.env_step:,}',
            flush=True,
        )
        scores, lengths = evaluate(agent, env, args)
        score = dict(
            seed=args.seed,
            mean=float(np.mean(scores)),
            std=float(np.std(scores)),
            returns=scores,
            lengths=lengths,
        )
        if args.export:
            exporting.write(args.export, agent, logdir, checkpoint.name, score)
    except (ValueError, OSError) as error:
        command_line.fail(error, 'evaluate')
    except (workers.WorkerError, MemoryError, tf.errors.OpError) as error:
        print(f'evaluate: stopped: {startup.explain(error)}', file=sys.stderr)
        return 1
    finally:
        env.close()
    if args.export:
        print(f'written: {args.export}')
    print(
        f'mean {score["mean"]:.1f}, standard deviation {score["std"]:.1f}, '
        f'{len(scores)} episodes'
    )
    print(
        json.dumps(
            dict(
                task=config.task,
                logdir=str(logdir),
                checkpoint=checkpoint.name,
                step=agent.env_step,
                gradient_step=agent.gradient_step,
                **score,
            )
        )
    )
    if args.dream and not args.dream.exists():
        command_line.fail(
            f'--dream needs an episode of {CONTEXT} steps; the longest has '
            f'{max(lengths)}',
            'evaluate',
        )
    return 0


if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
