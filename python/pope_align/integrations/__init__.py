"""Adapters to other libraries; each module needs its library, which an extra installs."""
