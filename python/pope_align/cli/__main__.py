"""``python -m pope_align.cli``, for where the ``pope`` script is not on the path."""

from . import main

main()
