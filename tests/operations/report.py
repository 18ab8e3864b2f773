"""Counts what passed and prints what failed."""


class Report:
    def __init__(self):
        self.passed = self.failed = 0

    def that(self, what, holds, why=""):
        if holds:
            self.passed += 1
        else:
            self.failed += 1
            print(f"FAILED: {what}" + (f": {why}" if why else ""), flush=True)

    def same(self, what, found, wanted):
        self.that(what, found == wanted, f"{found}, not {wanted}")

    def __str__(self):
        return f"{self.passed} {self.failed}"
