"""What dlopen would do, without doing it: a library on its own, standard library only."""
