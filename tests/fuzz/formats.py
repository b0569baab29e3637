"""Every format that the project reads from files, and those inside of messages."""

from tests.fuzz.of_files import OF_FILES
from tests.fuzz.of_messages import OF_MESSAGES

FORMATS = [*OF_MESSAGES, *OF_FILES]
