"""Which of MuJoCo's renderers works here, and which tasks need one."""

import functools
import os
import subprocess
import sys

import gymnasium

LINUX_RENDERERS = ('egl', 'osmesa', 'glfw')
OTHER_RENDERERS = ('glfw',)  # The one name that MuJoCo takes on macOS and Windows.

INSTALL_HINT = (
    'install a renderer, with `apt-get install libegl1 libopengl0 libgl1-mesa-dri` or '
    '`apt-get install libosmesa6`'
)

# Run with MUJOCO_GL set. A context can exist and still draw black. Who draws is good
# to know, but no condition.
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


def needs_renderer(task):
    """Whether the images of a task are rendered by MuJoCo (see `choose_renderer`)."""
    suite, _, name = task.partition('_')
    spec = gymnasium.registry.get(name) if suite == 'gym' else None
    return suite == 'dmc' or (spec is not None and 'mujoco' in str(spec.entry_point))


def choose_renderer():
    """Returns a value of MUJOCO_GL with which MuJoCo renders here.

    The user's MUJOCO_GL is kept, if it renders. Otherwise the first renderer that
    does is chosen. Each is tried in a short process of its own, because one that
    fails can take its process with it. Set the result as an environment variable
    before dm_control is first imported, with `os.environ.setdefault`.

    Raises:
      RuntimeError: If the user's choice does not render, or if nothing does; the
        message says what does, or what to install.
    """
    names = LINUX_RENDERERS if sys.platform == 'linux' else OTHER_RENDERERS
    chosen = os.environ.get('MUJOCO_GL')
    if chosen:
        error = _render_error(chosen)
        if not error:
            return chosen
        others = [n for n in names if n != chosen and not _render_error(n)]
        instead = f'use MUJOCO_GL={" or ".join(others)}' if others else INSTALL_HINT
        raise RuntimeError(
            f'MUJOCO_GL={chosen} is set, but does not render here ({error}); {instead}.'
        )
    for name in names:
        if not _render_error(name):
            return name
    tried = '; '.join(f'{name}: {_render_error(name)}' for name in names)
    raise RuntimeError(f'MuJoCo cannot render here ({tried}); {INSTALL_HINT}.')


def render_device(name):
    """Returns what draws with MUJOCO_GL=name, as OpenGL names it; empty if unknown.

    'llvmpipe' and 'softpipe' are Mesa's, which draw on the CPU.
    """
    probe = _render_probe(name)
    return probe.stdout.partition('rendered')[2].strip() if probe else ''


@functools.cache
def _render_probe(name):
    try:
        return subprocess.run(
            [sys.executable, '-c', RENDER_PROBE],
            env={**os.environ, 'MUJOCO_GL': name},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
    except subprocess.TimeoutExpired:
        return None


def _render_error(name):
    """Returns why MuJoCo does not render with MUJOCO_GL=name; empty if it does."""
    probe = _render_probe(name)
    if not probe:
        return 'no answer'
    # Judged by what it printed: some drivers crash while they are unloaded.
    if 'rendered' in probe.stdout:
        return ''
    lines = probe.stderr.split('\n') if probe.returncode > 0 else []
    lines = [line.strip() for line in lines if line.strip()]
    return lines[-1] if lines else f'exit code {probe.returncode}'
