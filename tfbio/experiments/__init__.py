"""Runs and studies in their directories: what the console command does. Only `config` depends on gin."""
