"""The ranks of a run: what they exchange, whatever carries it."""

from entrenar.distributed.communicator import Communicator, LocalCommunicator

__all__ = ["Communicator", "LocalCommunicator"]
