"""Prints what pip must install for the integrations that Home Assistant sets up by itself, and for MQTT."""

import json
import pathlib

import homeassistant
from homeassistant.bootstrap import CORE_INTEGRATIONS, DEFAULT_INTEGRATIONS, LOGGING_AND_HTTP_DEPS_INTEGRATIONS

# need a compiler, for voices
LEFT_OUT = ("pymicro-vad", "pyspeex-noise")

components = pathlib.Path(homeassistant.__file__).parent / "components"
# the integrations that MQTT asks about are imported with it
wanted = [*CORE_INTEGRATIONS, *DEFAULT_INTEGRATIONS, *LOGGING_AND_HTTP_DEPS_INTEGRATIONS, "mqtt", "hassio", "config"]
seen, requirements = set(), set()
while wanted:
    name = wanted.pop()
    if name not in seen:
        seen.add(name)
        manifest = json.loads((components / name / "manifest.json").read_text())
        wanted += manifest.get("dependencies", [])
        requirements |= set(manifest.get("requirements", []))
print("\n".join(sorted(line for line in requirements if not line.startswith(LEFT_OUT))))
