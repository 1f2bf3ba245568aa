/* The ways to be stuck; sim.c includes it, after own_path and sim_number. Each names what a debugger would show. */
static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void rest(double seconds)
{
    double end = now() + seconds, left;

    while ((left = end - now()) > 0) {
        struct timespec time = {(time_t)left, (long)((left - (double)(time_t)left) * 1e9)};

        nanosleep(&time, NULL); /* a signal must not end it early */
    }
}

static void hang_futex(double limit)
{
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += (time_t)limit;
    pthread_mutex_lock(&mutex);
    pthread_mutex_timedlock(&mutex, &until); /* its own lock: nobody will ever unlock it */
}

static void hang_spin(double limit)
{
    double end = now() + limit;
    volatile unsigned long turns = 0;

    while (turns++ % 1000000 || now() < end)
        ;
}

/* Ends the process by SIGALRM: pause knows no limit. */
static void hang_pause(double limit)
{
    alarm((unsigned)limit);
    while (1)
        pause();
}

static void *open_a_library(void *unused)
{
    (void)unused;
    return dlopen("libm.so.6", RTLD_NOW); /* waits for dl_load_lock, which whoever runs a constructor holds */
}

static void hang_dlopen(double limit)
{
    pthread_t thread;
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += (time_t)limit;
    if (!pthread_create(&thread, NULL, open_a_library, NULL))
        pthread_timedjoin_np(thread, NULL, &until);
}

static int lock_holder = -1;

static void *unlock_later(void *limit)
{
    rest(*(double *)limit);
    close(lock_holder);
    return NULL;
}

/* A lock on the library's own file, held through another open file: flock does not know that both are ours. */
static void hang_flock(double limit)
{
    static double kept;
    pthread_t thread;
    int fd;

    kept = limit;
    lock_holder = open(own_path, O_RDONLY | O_CLOEXEC);
    fd = open(own_path, O_RDONLY | O_CLOEXEC);
    if (lock_holder < 0 || fd < 0 || flock(lock_holder, LOCK_EX) || pthread_create(&thread, NULL, unlock_later, &kept))
        return;
    flock(fd, LOCK_EX);
    close(fd);
}

/* Every hang ends by itself after hang.limit seconds: a forgotten victim must not stay on the machine for ever. */
static void hang(char *how)
{
    double limit = (double)sim_number(600, "hang.limit");
    char *kind = strsep(&how, " ");
    int ends[2];
    sigset_t all;

    if (!strcmp(kind, "futex")) {
        hang_futex(limit);
    } else if (!strcmp(kind, "spin")) {
        hang_spin(limit);
    } else if (!strcmp(kind, "pause")) {
        hang_pause(limit);
    } else if (!strcmp(kind, "dlopen")) {
        hang_dlopen(limit);
    } else if (!strcmp(kind, "flock")) {
        hang_flock(limit);
    } else if (!strcmp(kind, "signals")) {
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, NULL);
        rest(limit);
    } else if (!strcmp(kind, "poll") && !pipe2(ends, O_CLOEXEC)) {
        struct pollfd silent = {ends[0], POLLIN, 0};

        poll(&silent, 1, (int)(limit * 1000));
    } else if (!strcmp(kind, "path") && how) {
        char name[PATH_MAX];
        int fd;

        snprintf(name, sizeof name, "%s.%d", how, (int)getpid());
        fd = open(name, O_CREAT | O_WRONLY | O_CLOEXEC, 0600); /* state D on a frozen or mute file system */
        if (fd >= 0) {
            close(fd);
            unlink(name);
        }
    } else {
        rest(limit);
    }
}
