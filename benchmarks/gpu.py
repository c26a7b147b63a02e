"""Dreamer's speed on one GPU, measured in ten minutes: a table and a JSON file.

    make bench-gpu
    python benchmarks/gpu.py [--out bench-gpu.json] [--minutes 10] [dreamer.py flags]

Each precision is measured in TensorFlow's graph and compiled by XLA. Each measurement
runs in another process, so that a failure does not end the rest. After the first
precision, a whole run trains on dmc_walker_walk, with EGL. Sizes are the paper's unless
flags change them. Measurements for which no time is left are skipped. The JSON file has

    machine    GPU, driver, compute capability, processor, versions
    updates    by precision and form:
               compile_s  time of the first update, tracing included
               update_ms  time of the next ones, without waiting after each
               peak_mb    peak memory of the GPU; without a GPU, of the process
               policy_ms  median time of acting in one environment
    loop       steps_per_s: environment steps a second with updates, to compare with the
               paper's on a V100; and the choice of `--jit auto`
"""

import json
import os
import pathlib
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import configs  # noqa: E402
from support.storage import metrics  # noqa: E402
from support.system import atomic, command_line  # noqa: E402

PAPER_STEPS_PER_S = 93  # 1e6 environment steps in 3 hours (paper, section 6).
PRECISIONS = 'bfloat16', '16', '32'
FORMS = dict(graph='false', xla='true')
ACTIONS = 6


def parse(argv):
    """Return the arguments, and the flags of dreamer.py."""
    parser = command_line.Parser(prog='gpu.py', description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=command_line.home_path, default='bench-gpu.json')
    parser.add_argument('--minutes', type=command_line.number(float, 0), default=10)
    parser.add_argument(
        '--updates', type=command_line.number(int, 1), default=20, help='timed updates'
    )
    parser.add_argument(
        '--seconds',
        type=command_line.number(float, 0),
        default=120,
        help='of the whole run, from its first line of metrics on',
    )
    parser.add_argument(
        '--precisions', nargs='+', choices=PRECISIONS, default=list(PRECISIONS)
    )
    parser.add_argument('--case', nargs=2, help='PRECISION FORM, in this process')
    args, flags = parser.parse_known_args(argv)
    configs.parse(flags)
    return args, flags


def measure(precision, form, updates, flags):
    """Measure one precision and form in this process; describe the machine, too."""
    from support.run import startup  # First: it imports TensorFlow without its chatter.

    import tensorflow as tf  # isort: skip

    from agent import Dreamer
    from benchmarks import train_step

    words = [*flags, '--precision', precision, '--jit', FORMS[form]]
    config, _ = startup.set_up_devices(configs.parse(words))
    agent = Dreamer(config, ACTIONS)
    batch = agent.on_device(train_step.random_batch(config, ACTIONS))

    def train(count):
        for _ in range(count):
            metrics = agent.train(batch)
        return [float(value) for value in metrics.values()]

    compile_s = train_step.seconds(lambda: train(1))
    train(2)
    seconds = train_step.seconds(lambda: train(updates))
    gpus = tf.config.list_physical_devices('GPU')
    if gpus:
        peak = tf.config.experimental.get_memory_info('GPU:0')['peak'] / 1e6
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    figures = dict(
        compile_s=compile_s,
        update_ms=1000 * seconds / updates,
        peak_mb=peak,
        policy_ms=train_step.policy_ms(agent, 1),
    )
    return dict(
        figures=figures,
        devices=[
            f'{each.get("device_name")}, compute capability '
            f'{".".join(map(str, each.get("compute_capability", ())))}'
            for each in details
        ],
        tensorflow=tf.__version__,
        built=dict(tf.sysconfig.get_build_info()),
    )


def measure_elsewhere(precision, form, args, flags, deadline):
    """Call `measure` in another process; return a dict with an `error` if it fails."""
    command = [sys.executable, __file__, '--case', precision, form]
    command += ['--updates', str(args.updates), *flags]
    left = deadline - time.monotonic()
    if left <= 0:
        return dict(error='no time was left')
    try:
        done = subprocess.run(command, text=True, capture_output=True, timeout=left)
    except subprocess.TimeoutExpired:
        return dict(error='no time was left')
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f'exit code {done.returncode}']
        return dict(error=lines[-1])
    return json.loads(done.stdout.splitlines()[-1])


def run_loop(args, flags, deadline):
    """Return the environment steps a second of a whole run, and its choices."""
    left = deadline - time.monotonic()
    if left <= 0:
        return dict(error='no time was left')
    with tempfile.TemporaryDirectory() as folder:
        logdir = pathlib.Path(folder, 'run')
        command = [sys.executable, str(ROOT / 'dreamer.py'), '--logdir', str(logdir)]
        rare = ['--eval_every', '1e9', '--save_every', '1e9', '--steps', '1e9']
        start = ['--task', 'dmc_walker_walk', '--prefill', '1000']
        with open(pathlib.Path(folder, 'output'), 'w+') as output:
            process = subprocess.Popen(
                [*command, *start, *rare, *flags],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={'MUJOCO_GL': 'egl', **os.environ},
            )
            try:
                lines = watch(process, logdir, args.seconds, deadline)
            finally:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
            output.seek(0)
            printed = output.read().splitlines()
        # The first line includes pretraining and compilation.
        steps = [new['step'] - old['step'] for old, new in zip(lines, lines[1:])]
        seconds = [n / line['fps'] for n, line in zip(steps, lines[1:], strict=True)]
        if not seconds:
            failed = process.returncode and printed
            return dict(
                error=printed[-1] if failed else 'too little was trained in that time'
            )
        stored = json.loads((logdir / 'config.json').read_text())
        return dict(
            steps_per_s=sum(steps) / sum(seconds),
            precision=stored['config']['precision'],
            jit_choice=stored.get('jit_choice'),
            rendering=next((x for x in printed if x.startswith('rendering')), ''),
        )


def watch(process, logdir, seconds, deadline):
    """Return the lines with losses that a run writes in `seconds` after the first."""
    end, lines = deadline, []
    while time.monotonic() < end and process.poll() is None:
        time.sleep(0.5)
        lines = read(logdir)
        if lines and end == deadline:
            end = min(deadline, time.monotonic() + seconds)
    return read(logdir)


def read(logdir):
    """Return a run's lines of metrics with losses; none before the run has begun."""
    try:
        return [row for row in metrics.read(logdir) if row and 'fps' in row]
    except OSError:
        return []


def driver():
    """Return name, driver and memory of the GPUs, as nvidia-smi prints them."""
    query = ['nvidia-smi', '--query-gpu=name,driver_version,memory.total']
    try:
        return subprocess.run(
            [*query, '--format=csv,noheader'],
            text=True,
            capture_output=True,
            timeout=30,
        ).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return []


def table(results):
    """Return the lines of a Markdown table."""
    rows = [
        ('precision', 'form', 'compile [s]', 'update [ms]', 'peak [MB]', 'policy [ms]'),
        ('---',) * 6,
    ]
    for name, part in results['updates'].items():
        figures = part.get('figures', {}).values()
        numbers = [f'{number:.3g}' for number in figures] or [part['error'], '', '', '']
        rows.append((*name.split(), *numbers))
    loop = results['loop']
    speed = f'{loop["steps_per_s"]:.3g}' if 'steps_per_s' in loop else loop['error']
    return [
        *('| ' + ' | '.join(row) + ' |' for row in rows),
        f'environment steps a second, whole loop: {speed} (paper, on a V100: '
        f'{PAPER_STEPS_PER_S})',
    ]


def main(argv=None):
    """Run the command line."""
    with command_line.refusing('gpu'):
        args, flags = parse(argv)
    if args.case:
        print(json.dumps(measure(*args.case, args.updates, flags)))
        return
    deadline = time.monotonic() + 60 * args.minutes
    results, machine = dict(machine={}, updates={}, loop={}), {}
    for precision in args.precisions:
        for form in FORMS:
            # The whole run must have time left.
            latest = deadline - (0 if results['loop'] else 2 * args.seconds)
            part = measure_elsewhere(precision, form, args, flags, latest)
            machine |= {key: part.pop(key) for key in set(part) - {'figures', 'error'}}
            results['updates'][f'{precision} {form}'] = part
            print(f'{precision} {form}: {json.dumps(part)}', flush=True)
        if not results['loop']:
            results['loop'] = run_loop(args, flags, deadline)
            print(f'loop: {json.dumps(results["loop"])}', flush=True)
    results['machine'] = dict(
        machine,
        nvidia_smi=driver(),
        processor=platform.processor() or platform.machine(),
        cores=os.cpu_count(),
        flags=flags,
    )
    print(f'{", ".join(machine.get("devices", [])) or "no GPU"}; {driver()}')
    print(*table(results), sep='\n')
    args.out = pathlib.Path(args.out)
    atomic.write(args.out, f'{json.dumps(results, indent=2)}\n'.encode())
    print(f'written: {args.out}')


if __name__ == '__main__':
    main()
