"""How long work with files may take."""

# The master file of a run with very many gaps takes its time: 0.3 s for a thousand, 3 s for ten thousand.
MASTER_FILE_TIMEOUT_S = 600.0
