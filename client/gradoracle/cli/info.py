"""`gradoracle info`: what a server is."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from gradoracle.cli import connection, output, tables


@click.command("info")
@connection.options
@output.json_option
def command(as_json: bool, **where: Any) -> None:
    """Show a server's versions, devices with their workers, and limits."""
    with connection.client(**where) as client:
        info = client.server_info()
        address = client.address
    if as_json:
        output.print_json({"address": address, **dataclasses.asdict(info)})
        return
    versions = f"gradoracle {info.version}, torch {info.torch_version}, python {info.python_version}"
    click.echo(f"{address}: {versions}")
    screen = tables.console()
    devices = tables.table("device", "", "workers", "alive", "memory")
    for one in info.devices:
        default = "default" if one.name == info.default_device else ""
        memory = tables.size(one.memory_bytes) if one.memory_bytes else "not known"
        name = f"{one.name} ({one.description})" if one.description else one.name
        devices.add_row(name, default, str(one.workers), str(one.workers_alive), memory)
    screen.print(devices)
    limits = tables.table("limit", "", right=False)
    for name, value in dataclasses.asdict(info.limits).items():
        shown = tables.size(int(value)) if name.endswith("bytes") else f"{value:g}"
        limits.add_row(name.replace("_", " "), shown if value else "none")
    screen.print(limits)
