/* books.h: what must be true of a stack whenever it rests. */
#ifndef FUZZ_BOOKS_H
#define FUZZ_BOOKS_H

#include "stack.h"

void check_books(struct cf_stack *st);
/* Nothing is left that should have moved: to be called at rest, with an open TAP and no faults. */
void check_nothing_stuck(struct cf_stack *st);
void note_events(const struct cf_event *events, int n);

#endif
