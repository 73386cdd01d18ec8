"""The tags of GlueX's events: physics, and run control. Knows no file.

Sources: CODA 3 event tags; halld_recon, HDEVIO.cc and DEVIOWorkerThread.cc, for those of the CDAQ (November 2018 to
January 2020).
"""

from __future__ import annotations

BEGIN_OF_RUN = frozenset({0x70, 0xFF32})  # CODA, CDAQ
EPICS = 0x60
# Sync, prestart, go, pause, end.
CONTROL = BEGIN_OF_RUN | {EPICS, 0xFFD0, 0xFFD1, 0xFFD2, 0xFFD3, 0xFFD4}
# CODA's known ones are 0xFF50, 58, 70 and 78. Their neighbours are taken for
# physics, too: it is never repeated. The CDAQ's is 0xFF33.
PHYSICS = frozenset({0xFF33, *range(0xFF50, 0xFF90)})
