"""Programs without the seconds of processor time that importing TensorFlow takes.

Each is a fork of one process, which has imported what the programs need of others'
code, runs no other thread and has computed nothing. The project's own code is imported
by the fork, under the environment variables of the program.

As a program this is that process: it reads orders from stdin, one JSON a line.
"""

import functools
import gc
import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent

PLANS = (  # Short ones, and no videos.
    '--plan_candidates 10 --plan_iterations 1 --plan_elites 2 --plan_horizon 1 '
    '--log_images false'
).split()
# The agent that is traced in a third of the time, where it does not matter which agent
# it is: it plans, and has neither actor nor value network.
QUICK = '--method', 'planet', '--representation', 'reward', *PLANS

LOCK = threading.Lock()


@functools.cache
def server():
    """The process that forks."""
    return subprocess.Popen(
        [sys.executable, __file__],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def ask(**order):
    with LOCK:
        process = server()
        print(json.dumps(order), file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())


class Program:
    """A script of the project's that runs, as `subprocess.Popen` has it; stdout and
    stderr go to one file, or to two files.
    """

    def __init__(self, script, words, env=None, cwd=None, apart=False):
        self._paths = []
        for _ in range(1 + apart):
            file, path = tempfile.mkstemp()
            os.close(file)
            self._paths.append(path)
        self.returncode = None
        self.pid = ask(
            script=str(ROOT / script),
            words=[*map(str, words)],
            env=dict(os.environ if env is None else env),
            cwd=str(cwd or os.getcwd()),
            stdout=self._paths[0],
            stderr=self._paths[-1],
        )

    def poll(self):
        if self.returncode is None:
            self.returncode = ask(pid=self.pid)
        return self.returncode

    def wait(self, timeout):
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired('a fork', timeout, self.output())
            time.sleep(0.05)
        return self.returncode

    def output(self):
        """What it has printed so far, on stdout if that is apart."""
        return pathlib.Path(self._paths[0]).read_text()

    def finish(self, timeout=900):
        """Wait for its end; return what it has printed, on stdout if that is apart."""
        self.wait(timeout)
        output, self.errors = self.output(), pathlib.Path(self._paths[-1]).read_text()
        for path in self._paths:
            os.unlink(path)
        return output

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def wait_for(condition, process, seconds=600):
    """Wait until `condition()` is true, while `process`, of any kind, runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        printed = process.output() if isinstance(process, Program) else ''
        assert process.poll() is None, printed
        assert time.monotonic() < deadline, 'waited too long'
        time.sleep(0.05)


def become(script, words, env, cwd, stdout, stderr):
    """Run a script in this process, which is a fork."""
    for target, name, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, stdout, os.O_WRONLY | os.O_APPEND),
        (2, stderr, os.O_WRONLY | os.O_APPEND),
    ):
        file = os.open(name, flags)
        os.dup2(file, target)
        os.close(file)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = [script, *words]
    sys.path[:1] = [str(ROOT), *filter(None, env.get('PYTHONPATH', '').split(':'))]
    runpy.run_path(script, run_name='__main__')


def result(pid):
    """The exit code of a fork, None while it runs."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def serve():
    sys.path.insert(0, str(ROOT))
    import dreamer  # noqa: F401
    import evaluate  # noqa: F401

    ours = {'support', *(path.stem for path in ROOT.glob('*.py'))}
    for name in [*sys.modules]:
        if name.split('.')[0] in ours:
            del sys.modules[name]
    # What is there now is not looked at again, which would copy it to every fork: more
    # than a second of each, most of it when the fork ends.
    gc.collect()
    gc.freeze()
    # Not by the lines of a file object, which a fork's end would give back to the pipe.
    while line := sys.stdin.readline():
        order = json.loads(line)
        if 'pid' in order:
            answer = result(**order)
        else:
            answer = os.fork()
            if not answer:
                return become(**order)
        print(json.dumps(answer), flush=True)


if __name__ == '__main__':
    serve()
