"""Running the services of a configuration as child processes of one terminal."""
