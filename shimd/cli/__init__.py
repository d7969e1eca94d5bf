"""shimrun: the runtime without the daemon, with runc's command line.

How a verb is made. ``main.VERBS`` names it; its module ``shimd.cli.verbs.<name>`` is imported when it is asked for, and
has two things:

    COMMAND = Command(
        "output the state of a container",            # one line for the help
        "<container-id>",                             # what follows the options in the help
        options=(flag("all", "what it does", "a"), text("format", "what it does", "f", default="table"),
                 number("preserve-fds", "…"), texts("env", "…", "e")),
        least=1, most=1,                              # how many arguments there may be; most=-1: any number
        stop_at=1,                                    # options end after so many of them; -1: never
        code=255,                                     # exit code of a failure
        prefix="exec failed",                         # before the text of a failure
    )

    def run(call: Call) -> int:                       # the exit code

``Call`` has the values of the options by long name (``call.flag("all")``, ``call.text(…)``, ``call.number(…)``,
``call.texts(…)``, ``call.given(…)``), ``call.arguments``, ``call.settings`` (the global options), ``call.messages``
(``debug``, ``warn``), ``call.write(text)`` for the standard output, ``call.runtime()``, and ``call.container()``, which
loads the container that the first argument names and is used in a ``with``.

A verb that cannot do what it is asked raises a ``ShimdError`` (or lets an ``OSError`` pass); ``main`` makes one line of
it. Imports that only some ways through a verb need stand in the functions that need them: starting is what most calls
spend most of their time on. Nothing here imports argparse, asyncio, dataclasses, enum of our own, logging, subprocess
or typing's records.
"""
