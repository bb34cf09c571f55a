#!/usr/bin/env python3
"""Checks snapcraft.yaml of every variant against snapcraft's schema and against this tree.

  tests/snap_schema.py [SCHEMA]

SCHEMA is snapcraft's schema/snapcraft.json (from its repository or an installed snapcraft; it is under the
GPL and so not kept here). Without it only what needs no schema is checked.
"""

import json
import os
import pathlib
import subprocess
import sys

import yaml

FOLDER = pathlib.Path(__file__).parent.parent / "snap"


def main():
    schema = json.loads(pathlib.Path(sys.argv[1]).read_text()) if len(sys.argv) > 1 else None
    problems = []
    for variant in ["classic", *sorted(f.stem for f in FOLDER.glob("*.yaml") if f.stem != "snapcraft")]:
        text = subprocess.run([FOLDER / "variant.py", variant], check=True, stdout=subprocess.PIPE).stdout
        document = yaml.safe_load(text)
        problems += [f"{variant}: {problem}" for problem in checks(document)]
        if schema:
            problems += [f"{variant}: {problem}" for problem in against(schema, document)]
    for problem in problems:
        print(problem)
    sys.exit(1 if problems else 0)


def against(schema, document):
    import jsonschema

    # The base decides which of the alternatives counts: its errors are readable, oneOf's are not.
    base = document["base"].capitalize()
    wanted = {"$ref": f"#/$defs/{base}Project", "$defs": schema["$defs"]}
    for error in jsonschema.Draft202012Validator(wanted).iter_errors(document):
        yield f"{'/'.join(map(str, error.absolute_path)) or 'top level'}: {error.message}"


def checks(document):
    """What the schema cannot know."""
    apps, plugs = document["apps"], document.get("plugs", {})
    for name, app in apps.items():
        if app["command"].split()[0] not in ("bin/kedge", "bin/ctr"):
            yield f"app {name}: no part makes {app['command']}"
        if app.get("command-chain") != ["bin/env.sh"]:
            yield f"app {name} does not get its environment from bin/env.sh"
    daemon = apps["daemon"]
    if daemon.get("stop-mode") != "sigterm" or daemon.get("daemon") != "notify":
        yield "the daemon's containers would not outlive a refresh"
    used = {plug for app in apps.values() for plug in app.get("plugs", [])}
    if document["confinement"] == "strict":
        if "daemon-notify" not in daemon["plugs"]:
            yield "a strict daemon cannot notify without the plug daemon-notify"
        yield from (f"plug {plug} is defined and not used" for plug in sorted(set(plugs) - used))
    elif used or plugs:
        yield "a classic snap has no interfaces to plug"
    for hook in ["install", "configure", "pre-refresh", "post-refresh", "remove"]:
        if not os.access(FOLDER / "hooks" / hook, os.X_OK):
            yield f"hook {hook} is missing or not executable"
    if len(document["summary"]) > 78:
        yield "the summary is too long for the store"


if __name__ == "__main__":
    main()
