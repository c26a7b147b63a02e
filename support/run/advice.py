"""What a user may want to know about the settings of a run."""

import configs
from support.system import command_line, limits


def warn_of_flags(argv, config):
    """Print warnings of flags that may not do what the user expects.

    Args:
      argv: words of the command line.
      config: `configs.Config` that they stand for.
    """
    _, flags = configs.split_words(argv)
    suite = configs.SUITE_PRESETS[configs.suite_of(config.task)]
    if suite.get('pcont') and not config.pcont:
        command_line.warn(
            f'without --pcont the agent cannot know that {config.task} can end early'
        )
    idle = [f'--{name}' for name in flags if name in configs.IDLE[config.method]]
    if idle:
        plan = f'; plans have --plan_horizon {config.plan_horizon}'
        command_line.warn(
            f'--method {config.method} makes no use of '
            f'{", ".join(idle)}{plan * ("--horizon" in idle)}'
        )
    crowd = max(config.envs, config.eval_envs)
    if crowd > 2 * limits.cores():
        command_line.warn(
            f'{crowd} environments at once on {limits.count_cores()} will wait for one '
            'another'
        )
