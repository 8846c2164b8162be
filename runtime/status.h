// Errors: a status code plus a message that names the place, the value found and the value expected.
#pragma once

#include "hysparse.h"

// Fill *err (may be NULL) and return `code`. The message is cut at its buffer's end.
#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
int hs_fail(hs_error * err, int code, const char * fmt, ...);

// Clear *err and return HS_OK.
int hs_ok(hs_error * err);

// Route ggml's messages to the log. Once a process; every entry point that can be the first call into ggml calls it.
void hs_log_init(void);

// Log one line through hs_log_set's function (which gets it with its newline, as it gets ggml's). level: 1 debug 2 info 3 warning 4 error.
#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
void hs_log(int level, const char * fmt, ...);

// Does `f` fail? Then return its status. For use in functions that own nothing yet (or free on another path).
#define HS_TRY(f) do { int hs_try_rc_ = (f); if (hs_try_rc_ != HS_OK) return hs_try_rc_; } while (0)
