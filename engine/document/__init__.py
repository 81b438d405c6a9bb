"""Playbooks as text: YAML or JSON to data with positions, to a `Playbook`, and back."""
