"""Any environment that is registered with Gymnasium."""

import contextlib
import importlib.util
import os
import pathlib
import sys
from importlib.machinery import PathFinder

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.spaces.utils import flatdim, flatten

from support.envs import UnsupportedEnv, action_box, did_you_mean, one_line

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Advice for errors of rendering if only filmed evaluations need images.
FILM_NOTHING = '; possible: --eval_video false'


class GymnasiumTask(gymnasium.Env):
    """Any registered Gymnasium environment.

    An observation of uint8 [H, W], [H, W, 1] or [H, W, 3] is the image. Gymnasium
    flattens any other observation to the state, and the image is rendered. Actions of
    several dimensions are flattened.

    Args:
      name: id of the environment.
      gym_import: module that registers the environment when it is imported. It can be
        in the current folder.
      observes: 'image', 'state', or both.
      film: whether to render, where possible, even if only the state is observed.

    Attributes:
      state_size: V; 0 where there is no vector.
      renders: whether `render` gives an image.

    Raises:
      ValueError: if there is no such environment or module, or if the agent cannot use
        its observations or actions.
      RuntimeError: if the environment cannot be made, for instance because a package
        that it needs is missing.
      UnsupportedEnv: now or later, if the environment returns something that breaks
        Gymnasium's interface or its spaces.
    """

    metadata = {'render_modes': ['rgb_array']}
    render_mode = 'rgb_array'

    def __init__(self, name, gym_import='', observes=('image',), film=False):
        import ale_py

        if 'DREAMER_VERBOSE' not in os.environ:
            gymnasium.logger.min_level = gymnasium.logger.ERROR
        gymnasium.register_envs(ale_py)
        # Users expect Python to find modules in the current folder, which a script does
        # not search. As the last folder it hides no other module.
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        modules = {gym_import: '--gym_import'} if gym_import else {}
        if ':' in name:
            modules[name.partition(':')[0]] = f"'gym_{name}'"
        for module, source in modules.items():
            _import(module, source)
        self._task = f'gym_{name}'
        self._env = _make(name, modules)
        space = self._env.observation_space
        self._observes_image = self.renders = _is_image(space)
        self._shape = space.shape
        self.observation_space = Dict()
        self.state_size = 0
        try:
            self.action_space = _flat_actions(name, self._env.action_space)
            if 'state' in observes:
                self.state_size = _state_size(name, space)
            can_render = 'rgb_array' in self._env.metadata.get('render_modes', [])
            if not self.renders and ('image' in observes or film and can_render):
                self._make_rendering(name, modules)
            self._try_out('' if 'image' in observes else FILM_NOTHING)
        except BaseException:
            with contextlib.suppress(Exception):
                self.close()
            raise

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        result = self._env.reset(seed=seed, options=options)
        self._observation, _ = self._unpack(result, 'reset', ('observation', 'info'))
        return {}, {}

    def step(self, action):
        space = self._env.action_space
        if isinstance(space, Box):
            action = np.reshape(action, space.shape).astype(space.dtype)
            # A bound in float64 can be exceeded by its float32.
            action = np.clip(action, space.low, space.high)
        self._observation, reward, terminated, truncated, _ = self._unpack(
            self._env.step(action),
            'step',
            ('observation', 'reward', 'terminated', 'truncated', 'info'),
        )
        # Some environments give arrays of one number.
        reward = float(np.asarray(reward).item())
        return {}, reward, bool(terminated), bool(truncated), {}

    def render(self):
        if not self._observes_image:
            image = _as_array(self._env.render())
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise UnsupportedEnv(
                    f"'{self._task}' renders {_describe(image)}, not images uint8 "
                    '(H, W, 3)'
                )
            return image
        image = _as_array(self._observation)
        if image.dtype != np.uint8 or image.shape != self._shape:
            raise UnsupportedEnv(
                f"'{self._task}' gives the observation {_describe(image)}, where its "
                f'space says uint8 {self._shape}'
            )
        if image.ndim == 2:
            image = image[..., None]
        return np.broadcast_to(image, (*image.shape[:2], 3))

    def state(self):
        """Return the observation as Gymnasium flattens it, float32 [V]."""
        space = self._env.observation_space
        try:
            vector = np.asarray(flatten(space, self._observation), np.float32)
        except Exception as error:  # Each space raises other kinds.
            raise UnsupportedEnv(
                f"'{self._task}' gives an observation that is not of its space "
                f'{_describe_space(space)} ({one_line(error)})'
            ) from error
        if vector.shape != (self.state_size,):
            raise UnsupportedEnv(
                f"'{self._task}' gives an observation of {vector.size} numbers, where "
                f'its space says {self.state_size}'
            )
        return vector

    def close(self):
        env, self._env = self._env, None
        if env:
            env.close()

    def _make_rendering(self, name, modules):
        """Replace the environment by one that renders."""
        if 'rgb_array' not in self._env.metadata.get('render_modes', []):
            raise ValueError(
                f"'gym_{name}' has no images: it observes "
                f'{_describe_space(self._env.observation_space)}, and has no '
                "render_mode 'rgb_array'; possible: --observation state"
            )
        self.close()
        self._env = _make(name, modules, render_mode='rgb_array')
        self.renders = True

    def _try_out(self, render_advice):
        """Raise errors of resetting and observing now, not in the first episode. Add
        `render_advice` to errors of rendering.
        """
        calls = dict(reset=self.reset)
        if self.renders:
            calls['render'] = self.render
        if self.state_size:
            calls['observe'] = self.state
        for verb, call in calls.items():
            try:
                call()
            except UnsupportedEnv:
                raise
            except Exception as error:  # Each environment raises other kinds.
                advice = render_advice if verb == 'render' else ''
                raise RuntimeError(
                    f"Cannot {verb} '{self._task}': {_explain(error)}{advice}"
                ) from error

    def _unpack(self, result, call, names):
        """Return the `result` of a call; raise UnsupportedEnv if it has not a value for
        each name, as in the older interface of `gym`.
        """
        several = isinstance(result, (tuple, list))
        if several and len(result) == len(names):
            return result
        got = f'{len(result)} values' if several else _describe(_as_array(result))
        raise UnsupportedEnv(
            f"'{self._task}' breaks Gymnasium's interface: {call} returned {got}, "
            f'not ({", ".join(names)})'
        )


def _is_image(space):
    return (
        isinstance(space, Box)
        and space.dtype == np.uint8
        and (len(space.shape) == 2 or space.shape[2:] in ((1,), (3,)))
    )


def _state_size(name, space):
    """Return the size of the vector to which Gymnasium flattens an observation."""
    if _is_image(space):
        raise ValueError(
            f"'gym_{name}' observes images alone; possible: --observation image"
        )
    if not space.is_np_flattenable:
        raise ValueError(
            f"'gym_{name}' observes {_describe_space(space)}, which Gymnasium cannot "
            'flatten to a vector; possible: --observation image'
        )
    return flatdim(space)


def _describe_space(space):
    """Return a description of an observation space."""
    if not isinstance(space, Box):
        return f'a space {type(space).__name__}'
    if len(space.shape) == 1:
        return f'a vector of shape {space.shape}'
    return f'{space.dtype} of shape {space.shape}'


def _flat_actions(name, space):
    """Return the action space as a flat Box or Discrete, which the heads need."""
    if isinstance(space, Discrete):
        return space
    if not isinstance(space, Box) or space.dtype.kind != 'f' or 0 in space.shape:
        raise ValueError(
            f"'gym_{name}' has the action space {space}, which no action head "
            'fits: there are heads for Box (of floats) and Discrete'
        )
    return action_box(space.low.ravel(), space.high.ravel())


def _as_array(value):
    """Return a value as an array; if it is none, as an array of objects."""
    try:
        return np.asarray(value)
    except Exception:  # For instance rows of different lengths.
        return np.array(None)


def _describe(array):
    """Return a description of an array from `_as_array`."""
    if array.dtype == object:
        return 'no array'
    if array.dtype.kind not in 'biuf' or not array.size:
        return f'{array.dtype} {array.shape}'
    return f'{array.dtype} {array.shape} from {array.min():g} to {array.max():g}'


def _make(name, modules, **kwargs):
    """Return the environment; `modules` were imported to register it."""
    try:
        return gymnasium.make(name, disable_env_checker=True, **kwargs)
    except Exception as error:  # Each environment raises other kinds.
        unknown = isinstance(error, gymnasium.error.UnregisteredEnv)
        if not unknown and type(error) is not gymnasium.error.Error:
            raise RuntimeError(
                f"Cannot make 'gym_{name}': {_explain(error, modules)}"
            ) from error
        hint = did_you_mean(name, list(gymnasium.registry), 'gym')
        text = ' '.join(str(error).split())
        text += _describe_hidden(modules)
        raise ValueError(
            f"Unknown task 'gym_{name}'{hint}: {text} (--gym_import names a module "
            'that registers environments of third parties)'
        ) from error


def _import(module, source):
    """Import a user's module. `source` says, for errors, where the user named it."""
    name = module.partition('.')[0]
    message = f"Cannot import the module '{module}' of {source}"
    if theirs := _hidden_by_project(name):
        raise ValueError(
            f"{message}: this project has a '{name}' too, which hides {theirs}; give "
            'yours another name'
        )
    try:
        importlib.import_module(module)
    except Exception as error:
        raise ValueError(f'{message}: {_explain(error, [module])}') from error


def _explain(error, modules=()):
    """Return an error of other people's code in one line. Add which of `modules`, or of
    the modules that the error names, are hidden by others.
    """
    text = one_line(error)
    here = {path.stem for path in pathlib.Path.cwd().iterdir()}
    named = {name for name in here if f"'{name}'" in text}
    return text + _describe_hidden([*modules, *named])


def _describe_hidden(modules):
    """Return words for a message about modules in the current folder that others hide,
    because Python finds those first; '' if there are none.
    """
    text = ''
    for name in sorted({module.partition('.')[0] for module in modules}):
        theirs = PathFinder.find_spec(name, [os.getcwd()])
        with contextlib.suppress(ImportError, ValueError):  # A module may lack a spec.
            found = importlib.util.find_spec(name)
            if found and theirs and _path_of(found) != _path_of(theirs):
                text += (
                    f" (the module '{name}' is {_path_of(found)}, which hides "
                    f'{_path_of(theirs)}; give yours another name)'
                )
    return text


def _path_of(spec):
    """Return the path of a module, or of its folder if that has no __init__.py."""
    return spec.origin or list(spec.submodule_search_locations)[0]


def _hidden_by_project(name):
    """Return the path of the user's module of a name, if this project hides it by a
    file of the same name; else None.
    """
    ours = PathFinder.find_spec(name, [str(ROOT)])
    if not ours or not ours.origin:
        return None
    places = [os.getcwd(), *sys.path]
    others = [path for path in places if pathlib.Path(path).resolve() != ROOT]
    theirs = PathFinder.find_spec(name, others)
    return theirs and _path_of(theirs)
