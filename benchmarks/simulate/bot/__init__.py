"""Stories of a bot: buyers write, and workers that are killed answer, in virtual time."""
