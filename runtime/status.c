// Errors and the log. The log function is the one piece of process-wide state (ggml's own log is process-wide too).
#include "status.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "ggml.h"

static void log_to_stderr(int32_t level, const char * text, void * user) {
    (void) user;
    if (level >= 3) {
        fputs(text, stderr);
        fflush(stderr);
    }
}

static pthread_mutex_t log_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t  log_once  = PTHREAD_ONCE_INIT;
static hs_log_fn       log_fn    = log_to_stderr;
static void *          log_user  = NULL;

// The function runs outside the lock, so it may log or call hs_log_set itself.
static void log_text(int32_t level, const char * text) {
    pthread_mutex_lock(&log_mutex);
    hs_log_fn fn   = log_fn;
    void *    user = log_user;
    pthread_mutex_unlock(&log_mutex);
    fn(level, text, user);
}

static void ggml_to_log(enum ggml_log_level level, const char * text, void * user) {
    static _Thread_local int32_t last = 2; // GGML_LOG_LEVEL_CONT continues the line before it
    (void) user;
    if (level >= GGML_LOG_LEVEL_DEBUG && level <= GGML_LOG_LEVEL_ERROR) {
        last = (int32_t) level; // ggml's numbers are ours
    }
    if (strstr(text, "failed to initialize CUDA")) last = 2; // a build with CUDA on a machine without a driver: the CPU it is
    log_text(last, text);
}

static void log_install(void) {
    ggml_log_set(ggml_to_log, NULL);
}

void hs_log_init(void) {
    pthread_once(&log_once, log_install);
}

void hs_log_set(hs_log_fn fn, void * user) {
    hs_log_init();
    pthread_mutex_lock(&log_mutex);
    log_fn   = fn ? fn : log_to_stderr;
    log_user = fn ? user : NULL;
    pthread_mutex_unlock(&log_mutex);
}

void hs_log(int level, const char * fmt, ...) {
    char    text[2048];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(text, sizeof text - 1, fmt, args);
    va_end(args);
    if (n < 0) {
        return;
    }
    size_t len = strlen(text);
    if (len == 0 || text[len - 1] != '\n') { // whole lines, as ggml's messages are
        text[len]     = '\n';
        text[len + 1] = '\0';
    }
    log_text(level, text);
}

int hs_fail(hs_error * err, int code, const char * fmt, ...) {
    if (err) {
        // Through a buffer of our own: the arguments may point into *err (a message that wraps an earlier one).
        char    text[sizeof err->message];
        va_list args;
        va_start(args, fmt);
        int n = vsnprintf(text, sizeof text, fmt, args);
        va_end(args);
        if (n < 0) {
            text[0] = '\0';
        }
        memcpy(err->message, text, sizeof text);
        err->code = code;
    }
    return code;
}

int hs_ok(hs_error * err) {
    if (err) {
        err->code       = HS_OK;
        err->message[0] = '\0';
    }
    return HS_OK;
}
