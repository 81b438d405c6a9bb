"""Playbooks and traces as pictures: what is drawn (`model`, `progress`), where it stands
(`layers`, `layout`), and the two writers (`text`, `svg`). Only `saving` does I/O."""
