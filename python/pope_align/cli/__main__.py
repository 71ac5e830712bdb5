"""``python -m pope_align.cli``, for use when the ``pope`` script is not on the path."""

from . import main

main()
