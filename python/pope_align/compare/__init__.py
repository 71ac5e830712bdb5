"""From a log to a decision between policies: a plan of stages, each a command of `pope`, kept and resumed."""
