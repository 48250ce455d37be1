"""One run, many runs, and their folders: what the console command does. `config` alone knows gin."""
