"""What every daemon shares: arguments, log lines, statistics, signals."""
