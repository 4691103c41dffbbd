"""Review sessions: several readers read the same slides, first alone and then with the network's answer, and what their reads are worth.

::

    cases ──> create_session ──> Session ──> Reader: sight, open, decide, undo ──> events (store.py) ──> reads ──> statistics/
"""

from streamview.review.design import DESIGNS, Design, Modality, Step
from streamview.review.session import Case, Reader, Reading, Session, Sight, create_session
from streamview.review.vocabulary import Vocabulary

__all__ = ["DESIGNS", "Case", "Design", "Modality", "Reader", "Reading", "Session", "Sight", "Step", "Vocabulary", "create_session"]
