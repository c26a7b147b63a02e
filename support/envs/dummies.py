"""Small tasks for tests, which need NumPy but no simulator.

Things are soft blobs, which a small network learns soon and whose motion by less than
a pixel can be seen. Arena coordinates are x to the right and y down, in [-1, 1].
"""

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete

BLOB_STD = 0.25  # 7 pixels of 64.
MARGIN = 1.14  # The image shows a little more than the arena.


def draw(places, size):
    """Draw up to three things as a red, a green and a blue blob.

    Args:
      places: arena coordinates (x, y) of each.
      size: height and width of the image in pixels.

    Returns:
      the image, uint8 [H, W, 3].
    """
    height, width = size
    # Pixel centres in arena coordinates, y [H, 1] and x [1, W], which broadcast.
    pixel_y = MARGIN * ((2 * np.arange(height) + 1) / height - 1)[:, None]
    pixel_x = MARGIN * ((2 * np.arange(width) + 1) / width - 1)[None, :]
    image = np.zeros((height, width, 3), np.uint8)
    for channel, (x, y) in enumerate(places):
        square = (pixel_x - x) ** 2 + (pixel_y - y) ** 2
        image[..., channel] = 255 * np.exp(-square / (2 * BLOB_STD**2))
    return image


class DummyContinuous(gymnasium.Env):
    """A point has to find a target. Image and state show where the two are.

    Start and target are uniform in the arena [-1, 1]^2. The action, in [-1, 1]^2, moves
    the point by up to `SPEED` along either axis. The reward is 1 while the point is
    within `RADIUS` of the target, and 0 elsewhere. Neither a blind policy nor a policy
    that looks one step ahead does well. Use it with 50 steps an episode and without
    action repeat.

    `point` and `target` are arena coordinates, float64 [2].
    """

    SPEED = 0.25
    RADIUS = 0.4

    metadata = {'render_modes': ['rgb_array']}
    render_mode = 'rgb_array'

    def __init__(self, size=(64, 64)):
        self.action_space = Box(-1, 1, (2,), np.float32)
        self.observation_space = Dict()
        self.state_size = 4
        self._size = size

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.point, self.target = self.np_random.uniform(-1, 1, (2, 2))
        return {}, {}

    def step(self, action):
        move = self.SPEED * np.clip(action, -1, 1)
        self.point = np.clip(self.point + move, -1, 1)
        distance = np.linalg.norm(self.target - self.point)
        return {}, float(distance < self.RADIUS), False, False, {}

    def state(self):
        """Return the positions of point and target, float32 [4]."""
        return np.concatenate([self.point, self.target]).astype(np.float32)

    def render(self):
        """Draw the point in red and the target in green."""
        return draw((self.point, self.target), self._size)

    def expert_action(self):
        """Return the action, float32 [2], that moves straight to the target."""
        move = (self.target - self.point) / self.SPEED
        return np.clip(move, -1, 1).astype(np.float32)


class DummyDiscrete(gymnasium.Env):
    """A point has to find a target without coming near a hazard.

    Image and state show where the three are. Target and hazard are at the two `PLACES`,
    in random order. The point starts anywhere in the arena, but 2 `RADIUS` away from
    both. Actions move it by `SPEED` to the right, left, down or up, or let it stay. The
    reward is 1 while the point is within `RADIUS` of the target. A point within
    `RADIUS` of the hazard also gets 1, but the episode terminates. An agent that does
    not predict this end takes the hazard for a target. Use it with 50 steps an episode
    and without action repeat.
    """

    MOVES = np.array([[1, 0], [-1, 0], [0, 1], [0, -1], [0, 0]])
    STAY = 4
    PLACES = np.array([[-0.6, 0], [0.6, 0]])  # Unreachable along the walls.
    SPEED = 0.35
    RADIUS = 0.4

    metadata = {'render_modes': ['rgb_array']}
    render_mode = 'rgb_array'

    def __init__(self, size=(64, 64)):
        self.action_space = Discrete(len(self.MOVES))
        self.observation_space = Dict()
        self.state_size = 6
        self._size = size

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.target, self.hazard = self.np_random.permutation(self.PLACES)
        while True:
            self.point = self.np_random.uniform(-1, 1, 2)
            gaps = np.linalg.norm([self.target, self.hazard] - self.point, axis=1)
            if gaps.min() > 2 * self.RADIUS:
                return {}, {}

    def step(self, action):
        self.point = self._moved(self.point, action)
        if self._within(self.point, self.hazard):
            self.point = self.hazard
            return {}, 1.0, True, False, {}
        reward = float(self._within(self.point, self.target))
        return {}, reward, False, False, {}

    def state(self):
        """Return the positions of point, target and hazard, float32 [6]."""
        places = self.point, self.target, self.hazard
        return np.concatenate(places).astype(np.float32)

    def render(self):
        """Draw the point in red, the target in green and the hazard in blue."""
        return draw((self.point, self.target, self.hazard), self._size)

    def expert_action(self):
        """Return the first action, an int, of a shortest way around the hazard."""
        frontier, seen = [(self.point, None)], set()
        while frontier:
            level, frontier = frontier, []
            for place, first in level:
                if self._within(place, self.target):
                    return self.STAY if first is None else first
                for action in range(self.STAY):
                    moved = self._moved(place, action)
                    key = tuple(moved.round(6))
                    if key in seen or self._within(moved, self.hazard):
                        continue
                    seen.add(key)
                    frontier.append((moved, action if first is None else first))
        return self.STAY

    def _moved(self, place, action):
        return np.clip(place + self.SPEED * self.MOVES[action], -1, 1)

    def _within(self, place, centre):
        return np.hypot(*(place - centre)) < self.RADIUS
