"""Pictures in licensed artists' styles: a worker written as notebooks."""

__version__ = "0.1.0"
