"""`make gpu`: everything that a machine with a GPU can say about the library, by one command and without network.

__main__    the command line, the steps and their limits     steps      one child process after the other, each bounded
facts       what the machine is and can do                   summary    the file of results, the table that comes last

Whatever Python runs it brings torch and triton; nothing is installed but wheels from the folder .whl, and those beside
the machine's own packages. A step that fails or outlasts its limit is a line of the table, and the next one runs.
"""
