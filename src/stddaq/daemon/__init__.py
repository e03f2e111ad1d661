"""The parts that all daemons share: arguments, log lines, statistics, signals, isolation of calls."""
