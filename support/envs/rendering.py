"""The choice of a renderer for MuJoCo that works on this machine."""

import functools
import os
import subprocess
import sys
from importlib.machinery import PathFinder

LINUX_RENDERERS = ('egl', 'osmesa', 'glfw')
OTHER_RENDERERS = ('glfw',)  # MuJoCo has no other on macOS and Windows.

# Environment variables of the user, each of which can prevent rendering.
DEVICE = 'MUJOCO_EGL_DEVICE_ID'
DISTURBING_VARIABLES = (
    DEVICE,
    'PYOPENGL_PLATFORM',
    'EGL_PLATFORM',
    '__EGL_VENDOR_LIBRARY_FILENAMES',
    '__EGL_VENDOR_LIBRARY_DIRS',
    'LIBGL_DRIVERS_PATH',
    'MESA_LOADER_DRIVER_OVERRIDE',
    'GALLIUM_DRIVER',
)

INSTALL_HINT = (
    'install a renderer, with `apt-get install libegl1 libopengl0 libgl1-mesa-dri` or '
    '`apt-get install libosmesa6`'
)

# A program to run with MUJOCO_GL set. Some contexts draw black only, so it checks an
# image. It prints 'rendered' before it asks for the device, whose name may be missing.
RENDER_PROBE = """
from dm_control import mujoco
scene = '<mujoco><worldbody><light pos="0 0 3"/><geom size="1"/></worldbody></mujoco>'
physics = mujoco.Physics.from_xml_string(scene)
image = physics.render(8, 8)
assert image.any(), 'the rendered image is black'
print('rendered', flush=True)
from OpenGL import GL
with physics.contexts.gl.make_current() as context:
    print(context.call(GL.glGetString, GL.GL_RENDERER).decode())
"""


# The renderer chosen for the environments of this process or its workers, if any.
_chosen = []


class _ImportHook:
    """The part of `choose_on_import` that Python asks before it imports a module."""

    def __init__(self, choose, then):
        self._choose, self._then = choose, then

    def find_spec(self, name, path=None, target=None):
        """Set variables for MuJoCo, and return its spec, changed to call `then` later.
        Return None for other modules.
        """
        if name not in ('mujoco', 'dm_control'):
            return None
        choose, self._choose = self._choose, dict
        for key, value in choose().items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value
        if name == 'dm_control':
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path)
        if spec and spec.loader:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                self._then(module)

            spec.loader.exec_module = exec_module
        return spec


def choose_on_import(choose, then=lambda mujoco: None):
    """Choose a renderer just before MuJoCo is imported and reads its variables. The
    name of an environment does not say whether it needs MuJoCo.

    Args:
      choose: returns environment variables to set, or to unset where None.
      then: called with the module after the import.
    """
    waiting = any(isinstance(finder, _ImportHook) for finder in sys.meta_path)
    if not waiting and 'mujoco' not in sys.modules:
        sys.meta_path.insert(0, _ImportHook(choose, then))


def variables(device=None):
    """Return environment variables with which MuJoCo renders. They choose the GPU with
    EGL's number `device`, if it renders.

    Raises:
      RuntimeError: if nothing renders, see `choose_renderer`.
    """
    name = choose_renderer()
    _chosen[:] = [name]
    if device is None:
        return {'MUJOCO_GL': name}
    probe = name == 'egl' and _render_probe(name, ((DEVICE, device),))
    # In a container, EGL may number the GPUs differently and lack some of them.
    works = probe and 'rendered' in probe.stdout
    return {'MUJOCO_GL': name, DEVICE: device if works else None}


class TaskRenderer:
    """Choose a renderer for a task whose environment imports MuJoCo.

    Args:
      task: name of the task.
      env: environment variables that only the worker has. They win.
      observes: 'image', 'state', or both.
      film: whether images are recorded where that is possible.
    """

    def __init__(self, task, env, observes=('image',), film=False):
        self._task, self._env = task, env
        self._needed = 'image' in observes
        self._wanted = self._needed or film
        self._trouble = ''

    def __call__(self):
        """Return environment variables, see `choose_on_import`.

        Raises:
          RuntimeError: if nothing renders here, and the task needs images.
        """
        if 'MUJOCO_GL' in self._env:
            return {}
        if not self._wanted:
            return {'MUJOCO_GL': 'disable'}
        try:
            return variables(self._env.get(DEVICE))
        except RuntimeError as error:
            if self._needed and self._task.startswith('dmc_'):
                raise
            # Tasks of other suites may need MuJoCo's physics only.
            self._trouble = str(error)
            return {}

    def explain(self, error):
        """Return an error of making the environment, with the renderer's error, if any,
        added to its message.
        """
        if self._trouble and isinstance(error, RuntimeError):
            return RuntimeError(f'{error} ({self._trouble})')
        return error


def renderer_in_use():
    """Return the value of MUJOCO_GL in environments of this process or its workers;
    '' if none of them needed a renderer.
    """
    return _chosen[0] if _chosen else ''


def choose_renderer():
    """Return a value of MUJOCO_GL with which MuJoCo renders here.

    The user's MUJOCO_GL is kept. Otherwise the first renderer that works is chosen.
    Each is tried in a short separate process, because a failure can crash the process.

    Raises:
      RuntimeError: if the user's choice does not render, or if nothing renders. The
        message says what renders, what to install, or which variable to unset.
    """
    names = LINUX_RENDERERS if sys.platform == 'linux' else OTHER_RENDERERS
    chosen = os.environ.get('MUJOCO_GL')
    if chosen:
        error = _render_error(chosen)
        if not error:
            return chosen
        _blame_variables(chosen, DISTURBING_VARIABLES)
        others = [n for n in names if n != chosen and not _render_error(n)]
        instead = f'use MUJOCO_GL={" or ".join(others)}' if others else INSTALL_HINT
        raise RuntimeError(
            f'MUJOCO_GL={chosen} is set, but does not render here ({error}); {instead}'
        )
    for name in names:
        if not _render_error(name):
            return name
        # A user who chose a GPU does not want the next renderer, which uses the CPU.
        _blame_variables(name, [DEVICE])
    for name in names:
        _blame_variables(name, DISTURBING_VARIABLES)
    tried = '; '.join(f'{name}: {_render_error(name)}' for name in names)
    raise RuntimeError(f'MuJoCo cannot render here ({tried}); {INSTALL_HINT}')


def _blame_variables(name, variables):
    """Raise RuntimeError if MuJoCo renders with MUJOCO_GL=name once one of the user's
    environment variables, or all of them, are unset.
    """
    found = [key for key in variables if key in os.environ]
    for keys in [*([key] for key in found), found]:
        probe = keys and _render_probe(name, tuple((key, None) for key in keys))
        if probe and 'rendered' in probe.stdout:
            what = ' and '.join(f'{key}={os.environ[key]}' for key in keys)
            raise RuntimeError(
                f'{what} {"is" if len(keys) == 1 else "are"} set, with which MuJoCo '
                f'does not render here ({_render_error(name)}), but without which it '
                f'renders with {name}: unset {" and ".join(keys)}'
            )


def render_device(name):
    """Return OpenGL's name of the device behind MUJOCO_GL=name; '' if unknown.

    'llvmpipe' and 'softpipe' are Mesa's renderers on the CPU.
    """
    probe = _render_probe(name)
    return probe.stdout.partition('rendered')[2].strip() if probe else ''


@functools.cache
def _render_probe(name, changes=()):
    env = {**os.environ, 'MUJOCO_GL': name, **dict(changes)}
    try:
        return subprocess.run(
            [sys.executable, '-c', RENDER_PROBE],
            env={key: value for key, value in env.items() if value is not None},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
    except subprocess.TimeoutExpired:
        return None


def _render_error(name):
    """Return why MuJoCo does not render with MUJOCO_GL=name; '' if it does."""
    probe = _render_probe(name)
    if not probe:
        return 'no answer'
    # Exit codes say little: some drivers crash when they are unloaded.
    if 'rendered' in probe.stdout:
        return ''
    lines = probe.stderr.split('\n') if probe.returncode > 0 else []
    lines = [line.strip() for line in lines if line.strip()]
    return lines[-1].rstrip('.') if lines else f'exit code {probe.returncode}'
