"""Scripts with which a shell completes the options of a command, and file names after them."""

import re
from collections.abc import Mapping, Sequence

SHELLS = ("bash", "zsh")

_BASH = """\
{function}() {{
    local word=${{COMP_WORDS[COMP_CWORD]}}
    case ${{COMP_WORDS[COMP_CWORD-1]}} in
{cases}    esac
    if [[ $word == -* ]]; then
        COMPREPLY=($(compgen -W "{flags}" -- "$word"))
    fi
}}
complete -o default -F {function} {commands}
"""
_ZSH_FIRST = "autoload -Uz bashcompinit && bashcompinit\n"  # zsh understands what is written for bash after that


def completion_script(command: str, flags: Sequence[str], values: Mapping[str, Sequence[str]], shell: str) -> str:
    """A script for `shell`, to be sourced from its startup file.

    Args:
        command: the file name of the command.
        values: the words that follow a flag which takes one of few.
    """
    function = "_mdi_" + re.sub(r"\W", "_", command)
    cases = "".join(
        f'        {flag}) COMPREPLY=($(compgen -W "{" ".join(words)}" -- "$word")); return ;;\n'
        for flag, words in values.items()
    )
    script = _BASH.format(function=function, cases=cases, flags=" ".join(flags), commands=command)
    return _ZSH_FIRST + script if shell == "zsh" else script
