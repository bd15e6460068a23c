"""What a strategy puts on the disk, kept in memory."""

import copy


class MemoryStore:
    """Keeps blocks by round, and a copy of every state that was saved."""

    def __init__(self):
        self.results = []
        self.blocks = {}
        self.states = []
        self.arrays = {}

    def add(self, number, result):
        self.results.append(result)
        self.blocks[number, result.block] = result.changes

    def keep(self, statistics):
        self.results.append(statistics)

    def recall(self, number, block):
        return self.blocks.get((number, block), {})

    def save(self, state, partial):
        self.states.append(copy.deepcopy(state))
        self.arrays = {name: array.copy() for name, array in partial.items()}

    def partial_state(self):
        return self.arrays
