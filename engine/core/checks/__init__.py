"""The publishing checks: pure, and told by the registry what it knows of others."""
