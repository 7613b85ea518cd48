"""Engines: where independent pieces of work run. One interface, three places: threads, processes, a Dask cluster."""

from covector.engine.engines import Dask, Engine, Processes, Threads, engine

__all__ = ["Dask", "Engine", "Processes", "Threads", "engine"]
