"""Stories: playbooks, how their functions behave, what is done, and what must come out.

One file is one story. It is told in the core alone under virtual time, or by the real services
and a worker in any language, and must come out the same.
"""
