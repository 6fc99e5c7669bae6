/*
 * _channel: what passes between the kernel and pyfuse3, and what neither libfuse 3.14 nor pyfuse3
 * knows of it: passthrough, a mount that outlives its daemon, and a few more requests.
 *
 * This object is loaded with RTLD_GLOBAL before pyfuse3, so that the functions of libfuse's public
 * API that it defines are the ones that pyfuse3 calls:
 *
 *   fuse_session_new     fills the slots of fuse_lowlevel_ops that pyfuse3 leaves empty
 *   fuse_session_mount   takes the descriptor that attach() was given, with our own read and writev
 *   fuse_reply_open      \ add what set_open() said of the file handle: passthrough and the flags
 *   fuse_reply_create    / that libfuse 3.14 has no field for
 *
 * The messages that are read or changed here (linux/fuse.h, 7.45; all little words, no padding):
 *
 *   request      { u32 len, u32 opcode, u64 unique, u64 nodeid, u32 uid, u32 gid, u32 pid,
 *                  u16 total_extlen, u16 padding } body
 *   INIT         { u32 major, u32 minor, u32 max_readahead, u32 flags, u32 flags2, … }
 *   reply        { u32 len, s32 error, u64 unique } body
 *   INIT reply   { u32 major, u32 minor, u32 max_readahead, u32 flags, u16 max_background,
 *                  u16 congestion_threshold, u32 max_write, u32 time_gran, u16 max_pages,
 *                  u16 map_alignment, u32 flags2, u32 max_stack_depth, … }         64 bytes
 *   SETXATTR     { u32 size, u32 flags, u32 setxattr_flags, u32 padding } name \0 value
 *                (libfuse 3.14 knows it without the last two words)
 *   STATX        { u32 getattr_flags, u32 reserved, u64 fh, u32 sx_flags, u32 sx_mask }
 *                (libfuse 3.14 has no slot for it: it is made an IOCTL with a flag of our own)
 *   open reply   { u64 fh, u32 open_flags, s32 backing_id }
 *   entry reply  { u64 nodeid, u64 generation, u64 entry_valid, u64 attr_valid,
 *                  u32 entry_valid_nsec, u32 attr_valid_nsec, attributes }        128 bytes
 *   attributes   { u64 ino, u64 size, u64 blocks, u64 atime, u64 mtime, u64 ctime, u32 atimensec,
 *                  u32 mtimensec, u32 ctimensec, u32 mode, u32 nlink, u32 uid, u32 gid, u32 rdev,
 *                  u32 blksize, u32 flags }
 *   READDIRPLUS  entry reply, { u64 ino, u64 off, u32 namelen, u32 type } name, padded to 8 bytes
 *   RESEND       reply with error 7 and unique 0; what is resent has bit 63 of unique set
 *
 * No policy lives here. Nothing that writev does touches Python: it is also called by threads without
 * the GIL. read() answers what it can (see set_quick) before it returns, and then looks for the next
 * request: libfuse and pyfuse3 see only what is left over.
 */
#define FUSE_USE_VERSION 314
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <dlfcn.h>
#include <errno.h>
#include <fuse_lowlevel.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum opcode {
    OP_LOOKUP = 1,
    OP_FORGET = 2,
    OP_GETATTR = 3,
    OP_SETATTR = 4,
    OP_MKDIR = 9,
    OP_UNLINK = 10,
    OP_RMDIR = 11,
    OP_OPEN = 14,
    OP_RELEASE = 18,
    OP_SETXATTR = 21,
    OP_GETXATTR = 22,
    OP_INIT = 26,
    OP_OPENDIR = 27,
    OP_RELEASEDIR = 29,
    OP_CREATE = 35,
    OP_IOCTL = 39,
    OP_BATCH_FORGET = 42,
    OP_FALLOCATE = 43,
    OP_READDIRPLUS = 44,
    OP_LSEEK = 46,
    OP_COPY_FILE_RANGE = 47,
    OP_TMPFILE = 51,
    OP_STATX = 52,
    OP_LIMIT = 64,
};

#define SETXATTR_EXT (1ull << 29)
#define INIT_EXT (1ull << 30)
#define PASSTHROUGH (1ull << 37)
#define HAS_RESEND (1ull << 39)
#define NOTIFY_RESEND 7
#define RESENT (1ull << 63)
#define OPEN_DIRECT_IO (1u << 0)
#define OPEN_KEEP_CACHE (1u << 1)
#define OPEN_NONSEEKABLE (1u << 2)
#define MOST_IN_A_ROW 32 /* requests, after which everybody else in this process has a turn */

struct request {
    uint32_t len, opcode;
    uint64_t unique, nodeid;
    uint32_t uid, gid, pid;
    uint16_t total_extlen, padding;
};

struct init_in {
    uint32_t major, minor, max_readahead, flags, flags2;
};

struct reply {
    uint32_t len;
    int32_t error;
    uint64_t unique;
};

struct init_out {
    uint32_t major, minor, max_readahead, flags;
    uint16_t max_background, congestion_threshold;
    uint32_t max_write, time_gran;
    uint16_t max_pages, map_alignment;
    uint32_t flags2, max_stack_depth;
    uint32_t unused[6];
};

struct open_out {
    uint64_t fh;
    uint32_t open_flags;
    int32_t backing_id;
};

struct entry_out {
    uint64_t nodeid, generation, entry_valid, attr_valid;
    uint32_t entry_valid_nsec, attr_valid_nsec;
    uint64_t ino, size, blocks, atime, mtime, ctime;
    uint32_t atimensec, mtimensec, ctimensec, mode, nlink, uid, gid, rdev, blksize, flags;
};

struct attr_out {
    uint64_t valid;
    uint32_t valid_nsec, dummy;
    char attr[sizeof(struct entry_out) - offsetof(struct entry_out, ino)];
};

struct direntplus {
    struct entry_out entry;
    uint64_t ino, off;
    uint32_t namelen, type;
};

struct ioctl_in {
    uint64_t fh;
    uint32_t flags, cmd;
    uint64_t arg;
    uint32_t in_size, out_size;
};
#define STATX_IN_BYTES 24
#define SETATTR_BYTES 128 /* of the whole message */
#define IS_STATX (1u << 31) /* among an ioctl's flags; the kernel sets no such flag */

struct setxattr_in {
    uint32_t size, flags, setxattr_flags, padding;
};

/* What init.bin holds: enough to tell a new worker what the kernel and the first one agreed on. */
struct saved_init {
    uint32_t len, answered;
    uint64_t flags;
    unsigned char request[256];
};

/* What set_open() was told, until the reply to that open goes out. */
struct pending_open {
    bool used;
    uint64_t fh;
    uint32_t flags;
    int32_t backing_id;
};
#define PENDING_OPENS 64

static struct {
    int fd;                  /* /dev/fuse; -1: not attached */
    int init_fd;             /* init.bin */
    uint64_t wanted;         /* INIT flags to set where the kernel offers them */
    uint32_t stack_depth;    /* max_stack_depth */
    uint64_t agreed;         /* INIT flags that both sides have set */
    struct saved_init init;
    bool replay;             /* the saved INIT is still to be read */
    bool attached;           /* libfuse has taken our read and writev */
    struct fuse_session *session;
    long spin_us;            /* how long to look for the next request */
    int in_a_row;            /* requests that were read since anybody else had a turn */
    bool nothing;            /* there was no request, after looking for so long */
    bool inside;             /* a request is being answered by read() */
    bool declined;           /* the request read last is left to pyfuse3's handler */
    uint64_t current;        /* unique of the request read last, */
    uint32_t uid, gid;       /* and who sent it */
    uint32_t setxattr_flags; /* of the request read last */
    uint64_t seen[OP_LIMIT]; /* requests by opcode */
    struct pending_open pending[PENDING_OPENS];
    PyObject *handler;
    fuse_req_t answered;     /* by reply(), while the handler runs */
} channel = {.fd = -1, .init_fd = -1};

/* ---- requests -------------------------------------------------------------------------------- */

static void save_init(void)
{
    /* A mount whose INIT can't be saved works, but does not survive its worker. */
    if (channel.init_fd >= 0
        && pwrite(channel.init_fd, &channel.init, sizeof channel.init, 0)
               != (ssize_t)sizeof channel.init)
        perror("modamafs: saving the INIT request");
}

/* The older layout of SETXATTR, for libfuse 3.14; what is cut out is kept for Python. */
static size_t shorten_setxattr(unsigned char *message, size_t len)
{
    const size_t cut = 2 * sizeof(uint32_t), at = sizeof(struct request) + cut;
    struct request *header = (struct request *)message;
    struct setxattr_in *body = (struct setxattr_in *)(message + sizeof *header);

    channel.setxattr_flags = body->setxattr_flags;
    memmove(message + at, message + at + cut, len - at - cut);
    header->len = (uint32_t)(len - cut);
    return len - cut;
}

static uint64_t init_flags(const struct init_in *in)
{
    return in->flags & INIT_EXT ? in->flags | (uint64_t)in->flags2 << 32 : in->flags;
}

static ssize_t read_request(int fd, void *buffer, size_t size)
{
    struct request *header = buffer;
    ssize_t got;

    if (channel.replay) {
        channel.replay = false;
        memcpy(buffer, channel.init.request, channel.init.len);
        return channel.init.len;
    }
    do {
        got = read(fd, buffer, size);
        if (got < 0) {
            if (errno == EAGAIN) /* pyfuse3 takes EINTR as "nothing to do", and EAGAIN as its end */
                errno = EINTR;
            return got;
        }
        if ((size_t)got < sizeof *header)
            return got;
        if (header->opcode < OP_LIMIT)
            channel.seen[header->opcode]++;
    } while (header->opcode == OP_FORGET || header->opcode == OP_BATCH_FORGET);
    /* Those want no answer, and nothing is kept of what the kernel knows: nothing to forget. */
    channel.current = header->unique;
    channel.uid = header->uid;
    channel.gid = header->gid;
    channel.declined = false;
    channel.in_a_row++;
    switch (header->opcode) {
    case OP_INIT:
        if ((size_t)got <= sizeof channel.init.request) {
            channel.init.len = (uint32_t)got;
            channel.init.answered = 0;
            memcpy(channel.init.request, buffer, (size_t)got);
            save_init();
        }
        break;
    case OP_TMPFILE: /* its layout is CREATE's, and O_TMPFILE is among the flags */
        header->opcode = OP_CREATE;
        break;
    case OP_STATX: /* libfuse 3.14 has no slot for it, but hands an ioctl on as it is */
        if ((size_t)got != sizeof *header + STATX_IN_BYTES
            || size < sizeof *header + sizeof(struct ioctl_in))
            break;
        memcpy(header + 1, &(struct ioctl_in){.flags = IS_STATX}, sizeof(struct ioctl_in));
        got = sizeof *header + sizeof(struct ioctl_in);
        header->len = (uint32_t)got;
        header->opcode = OP_IOCTL;
        break;
    case OP_SETXATTR:
        if (channel.agreed & SETXATTR_EXT)
            got = (ssize_t)shorten_setxattr(buffer, (size_t)got);
        break;
    }
    return got;
}

/* ---- replies --------------------------------------------------------------------------------- */

static void ask_for_resend(int fd)
{
    struct reply notify = {.len = sizeof notify, .error = NOTIFY_RESEND, .unique = 0};

    if (!(channel.agreed & HAS_RESEND))
        return;
    if (write(fd, &notify, sizeof notify) < 0)
        perror("modamafs: FUSE_NOTIFY_RESEND");
}

static ssize_t answer_init(int fd, const struct reply *reply, const void *body, size_t size)
{
    struct {
        struct reply reply;
        struct init_out out;
    } message = {.reply = *reply};
    struct init_in offer;

    memcpy(&message.out, body, size < sizeof message.out ? size : sizeof message.out);
    memcpy(&offer, channel.init.request + sizeof(struct request), sizeof offer);
    uint64_t flags = message.out.flags | (uint64_t)message.out.flags2 << 32;
    flags |= channel.wanted;
    flags &= init_flags(&offer);
    message.out.flags = (uint32_t)flags;
    message.out.flags2 = (uint32_t)(flags >> 32);
    if (flags & PASSTHROUGH)
        message.out.max_stack_depth = channel.stack_depth;
    message.reply.len = sizeof message;
    channel.agreed = flags;

    ssize_t wrote = write(fd, &message, sizeof message);
    if (wrote < 0 && errno != ENOENT)
        return wrote;
    bool answered_before = wrote < 0; /* ENOENT: by a worker that died before it could note it */
    channel.init.answered = 1;
    channel.init.flags = flags;
    save_init();
    if (answered_before)
        ask_for_resend(fd);
    return reply->len;
}

static ssize_t channel_writev(int fd, struct iovec *iov, int count, void *userdata)
{
    const struct reply *reply = iov[0].iov_base;
    const struct request *init = (const struct request *)channel.init.request;
    (void)userdata;

    if (channel.init.len && reply->unique == init->unique && reply->unique) {
        if (channel.init.answered) { /* a replay: the kernel has had its answer */
            ask_for_resend(fd);
            return reply->len;
        }
        if (!reply->error && count == 2)
            return answer_init(fd, reply, iov[1].iov_base, iov[1].iov_len);
    }
    return writev(fd, iov, count);
}

static uint32_t open_flags(const struct fuse_file_info *fi, int32_t *backing_id)
{
    *backing_id = 0;
    for (int i = 0; i < PENDING_OPENS; i++) {
        struct pending_open *pending = &channel.pending[i];
        if (pending->used && pending->fh == fi->fh) {
            pending->used = false;
            *backing_id = pending->backing_id;
            return pending->flags;
        }
    }
    return (fi->direct_io ? OPEN_DIRECT_IO : 0) | (fi->keep_cache ? OPEN_KEEP_CACHE : 0)
        | (fi->nonseekable ? OPEN_NONSEEKABLE : 0);
}

#define EXPORT __attribute__((visibility("default")))

EXPORT int fuse_reply_open(fuse_req_t req, const struct fuse_file_info *fi)
{
    struct open_out out = {.fh = fi->fh};

    out.open_flags = open_flags(fi, &out.backing_id);
    return fuse_reply_buf(req, (const char *)&out, sizeof out);
}

static void put_time(struct timespec t, uint64_t *seconds, uint32_t *nanoseconds)
{
    *seconds = (uint64_t)t.tv_sec;
    *nanoseconds = (uint32_t)t.tv_nsec;
}

static void put_timeout(double seconds, uint64_t *whole, uint32_t *nanoseconds)
{
    *whole = (uint64_t)seconds;
    *nanoseconds = (uint32_t)((seconds - (double)*whole) * 1e9);
}

EXPORT int fuse_reply_create(fuse_req_t req, const struct fuse_entry_param *e,
                             const struct fuse_file_info *fi)
{
    struct {
        struct entry_out entry;
        struct open_out open;
    } out = {.entry = {.nodeid = e->ino, .generation = e->generation, .ino = e->attr.st_ino}};

    struct entry_out *entry = &out.entry;
    put_timeout(e->entry_timeout, &entry->entry_valid, &entry->entry_valid_nsec);
    put_timeout(e->attr_timeout, &entry->attr_valid, &entry->attr_valid_nsec);
    entry->size = (uint64_t)e->attr.st_size;
    entry->blocks = (uint64_t)e->attr.st_blocks;
    put_time(e->attr.st_atim, &entry->atime, &entry->atimensec);
    put_time(e->attr.st_mtim, &entry->mtime, &entry->mtimensec);
    put_time(e->attr.st_ctim, &entry->ctime, &entry->ctimensec);
    entry->mode = e->attr.st_mode;
    entry->nlink = (uint32_t)e->attr.st_nlink;
    entry->uid = e->attr.st_uid;
    entry->gid = e->attr.st_gid;
    entry->rdev = (uint32_t)e->attr.st_rdev;
    entry->blksize = (uint32_t)e->attr.st_blksize;
    out.open.fh = fi->fh;
    out.open.open_flags = open_flags(fi, &out.open.backing_id);
    return fuse_reply_buf(req, (const char *)&out, sizeof out);
}

/* ---- attributes ------------------------------------------------------------------------------ */

static uint64_t number(PyObject *attributes, int field)
{
    return PyLong_AsUnsignedLongLongMask(PyTuple_GET_ITEM(attributes, field));
}

static void put_nanoseconds(PyObject *attributes, int field, uint64_t *seconds, uint32_t *nanoseconds)
{
    PyObject *value = PyTuple_GET_ITEM(attributes, field);
    int beyond;
    int64_t ns = PyLong_AsLongLongAndOverflow(value, &beyond);

    if (beyond) { /* after the year 2262 */
        PyObject *billion = PyLong_FromLong(1000000000);
        PyObject *parts = billion ? PyNumber_Divmod(value, billion) : NULL;
        *seconds = parts ? number(parts, 0) : 0;
        *nanoseconds = parts ? (uint32_t)number(parts, 1) : 0;
        Py_XDECREF(parts);
        Py_XDECREF(billion);
        return;
    }
    int64_t rest = ns % 1000000000;
    if (rest < 0) /* before 1970 */
        rest += 1000000000;
    *seconds = (uint64_t)((ns - rest) / 1000000000);
    *nanoseconds = (uint32_t)rest;
}

/* The fields of modamafs.model.Attributes, in their order. */
static void put_entry(struct entry_out *to, PyObject *attributes)
{
    to->ino = number(attributes, 0);
    to->generation = number(attributes, 1);
    to->mode = (uint32_t)number(attributes, 2);
    to->nlink = (uint32_t)number(attributes, 3);
    to->uid = (uint32_t)number(attributes, 4);
    to->gid = (uint32_t)number(attributes, 5);
    to->rdev = (uint32_t)number(attributes, 6);
    to->size = number(attributes, 7);
    to->blocks = number(attributes, 8);
    to->blksize = (uint32_t)number(attributes, 9);
    put_nanoseconds(attributes, 10, &to->atime, &to->atimensec);
    put_nanoseconds(attributes, 11, &to->mtime, &to->mtimensec);
    put_nanoseconds(attributes, 12, &to->ctime, &to->ctimensec);
}

/* ---- the requests that there are most of ------------------------------------------------------ */

/*
 * These are asked of plain functions, and answered from here: a coroutine and an object for the
 * attributes would cost more than the answer. What a function returns:
 *
 *   what the answer is made of (see send_entry and those after it)
 *   an int                       an errno; 0: it is done, or, from lookup: there is no such entry, which
 *                                the kernel may believe as long as an entry
 *   NotImplemented               pyfuse3's handler is to be asked; nothing was done
 */
static struct {
    struct fuse_lowlevel_ops slow; /* pyfuse3's */
    PyObject *functions[OP_LIMIT], *changing;
    uint64_t root_ino;
    double entry_s, attribute_s, changing_s;
} quick;

static bool attributes_valid(PyObject *attributes, uint64_t *whole, uint32_t *nanoseconds)
{
    int changes = quick.changing && PySet_GET_SIZE(quick.changing)
        ? PySet_Contains(quick.changing, PyTuple_GET_ITEM(attributes, 0)) : 0;
    put_timeout(changes ? quick.changing_s : quick.attribute_s, whole, nanoseconds);
    return changes >= 0;
}

static bool fill_entry(struct entry_out *out, PyObject *found)
{
    if (!PyTuple_Check(found))
        return false;
    put_entry(out, found);
    if (out->ino == quick.root_ino)
        out->ino = FUSE_ROOT_ID;
    out->nodeid = out->ino;
    put_timeout(quick.entry_s, &out->entry_valid, &out->entry_valid_nsec);
    return attributes_valid(found, &out->attr_valid, &out->attr_valid_nsec);
}

/* Each sends one kind of answer; false: it is no such answer. `size` is what the caller has room for. */
typedef bool (*send_t)(fuse_req_t req, PyObject *found, size_t size);

/* Attributes, or 0. */
static bool send_entry(fuse_req_t req, PyObject *found, size_t size)
{
    struct entry_out out = {0};
    (void)size;

    if (PyLong_Check(found))
        put_timeout(quick.entry_s, &out.entry_valid, &out.entry_valid_nsec);
    else if (!fill_entry(&out, found))
        return false;
    fuse_reply_buf(req, (const char *)&out, sizeof out);
    return true;
}

/* Attributes. */
static bool send_attributes(fuse_req_t req, PyObject *found, size_t size)
{
    struct entry_out entry = {0};
    struct attr_out out = {0};
    (void)size;

    if (!fill_entry(&entry, found))
        return false;
    entry.ino = number(found, 0);
    out.valid = entry.attr_valid;
    out.valid_nsec = entry.attr_valid_nsec;
    memcpy(out.attr, &entry.ino, sizeof out.attr);
    fuse_reply_buf(req, (const char *)&out, sizeof out);
    return true;
}

/* bytes. */
static bool send_value(fuse_req_t req, PyObject *found, size_t size)
{
    if (!PyBytes_Check(found))
        return false;
    size_t length = (size_t)PyBytes_GET_SIZE(found);
    if (!size)
        fuse_reply_xattr(req, length);
    else if (length > size)
        fuse_reply_err(req, ERANGE);
    else
        fuse_reply_buf(req, PyBytes_AS_STRING(found), length);
    return true;
}

/* (fh, FOPEN_* flags, backing_id), and Attributes where a file was made. */
static bool send_opened(fuse_req_t req, PyObject *found, size_t size)
{
    struct {
        struct entry_out entry;
        struct open_out open;
    } out = {0};
    PyObject *attributes = NULL;
    unsigned long long fh;

    if (!PyTuple_Check(found)
        || !PyArg_ParseTuple(found, "KIi|O", &fh, &out.open.open_flags, &out.open.backing_id,
                             &attributes)
        || !attributes != !size)
        return false;
    out.open.fh = fh;
    if (attributes && !fill_entry(&out.entry, attributes))
        return false;
    if (attributes)
        fuse_reply_buf(req, (const char *)&out, sizeof out);
    else
        fuse_reply_buf(req, (const char *)&out.open, sizeof out.open);
    return true;
}

/* 0. */
static bool send_done(fuse_req_t req, PyObject *found, size_t size)
{
    (void)size;
    if (!PyLong_Check(found))
        return false;
    fuse_reply_err(req, 0);
    return true;
}

/* Ask the function and send what it says; false: pyfuse3's handler is to be asked now. */
static bool answered(fuse_req_t req, enum opcode opcode, send_t send, size_t size,
                     const char *format, ...)
{
    if (channel.declined || !quick.functions[opcode])
        return false;
    PyGILState_STATE gil = PyGILState_Ensure();
    va_list list;
    va_start(list, format);
    PyObject *arguments = Py_VaBuildValue(format, list);
    va_end(list);
    PyObject *found = arguments ? PyObject_CallObject(quick.functions[opcode], arguments) : NULL;
    bool left = found == Py_NotImplemented;

    if (left && channel.inside) {
        channel.declined = true;
        fuse_reply_none(req); /* the same message is dealt with again, by pyfuse3 */
        left = false;
    } else if (!left) {
        int failed = found && PyLong_Check(found) ? (int)PyLong_AsLong(found) : 0;
        if (failed)
            fuse_reply_err(req, failed);
        else if (!found || !send(req, found, size))
            fuse_reply_err(req, EIO);
        if (PyErr_Occurred())
            PyErr_WriteUnraisable(quick.functions[opcode]);
    }
    Py_XDECREF(found);
    Py_XDECREF(arguments);
    PyGILState_Release(gil);
    return !left;
}

/* The first fields of modamafs.model.Caller, for a format's "(IIiIKO)". */
#define CALLER_OF(ctx) (ctx)->uid, (ctx)->gid, (int)(ctx)->pid, (unsigned)(ctx)->umask, \
    (unsigned long long)(channel.current & ~RESENT), channel.current & RESENT ? Py_True : Py_False
#define CALLER "(IIiIKO)"

static void on_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    if (!answered(req, OP_LOOKUP, send_entry, 0, "(Ky)", (unsigned long long)parent, name))
        quick.slow.lookup(req, parent, name);
}

static void on_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    if (!answered(req, OP_GETATTR, send_attributes, 0, "(K)", (unsigned long long)ino))
        quick.slow.getattr(req, ino, fi);
}

static void on_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
    if (!answered(req, OP_GETXATTR, send_value, size, "(Ky)", (unsigned long long)ino, name))
        quick.slow.getxattr(req, ino, name, size);
}

static void on_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *to, int to_set,
                       struct fuse_file_info *fi)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (to_set & FUSE_SET_ATTR_ATIME_NOW && !(to_set & FUSE_SET_ATTR_ATIME))
        to->st_atim = now;
    if (to_set & FUSE_SET_ATTR_MTIME_NOW && !(to_set & FUSE_SET_ATTR_MTIME))
        to->st_mtim = now;
    if (!answered(req, OP_SETATTR, send_attributes, 0, "(KiIII(LL)(LL))", (unsigned long long)ino,
                  to_set, (unsigned)to->st_mode, (unsigned)to->st_uid, (unsigned)to->st_gid,
                  (long long)to->st_atim.tv_sec, (long long)to->st_atim.tv_nsec,
                  (long long)to->st_mtim.tv_sec, (long long)to->st_mtim.tv_nsec))
        quick.slow.setattr(req, ino, to, to_set, fi);
}

static void on_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
    const struct fuse_ctx *ctx = fuse_req_ctx(req);
    if (!answered(req, OP_MKDIR, send_entry, 0, "(KyI" CALLER ")", (unsigned long long)parent, name,
                  (unsigned)mode, CALLER_OF(ctx)))
        quick.slow.mkdir(req, parent, name, mode);
}

static void on_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    const struct fuse_ctx *ctx = fuse_req_ctx(req);
    if (!answered(req, OP_UNLINK, send_done, 0, "(Ky" CALLER ")", (unsigned long long)parent, name,
                  CALLER_OF(ctx)))
        quick.slow.unlink(req, parent, name);
}

static void on_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    const struct fuse_ctx *ctx = fuse_req_ctx(req);
    if (!answered(req, OP_RMDIR, send_done, 0, "(Ky" CALLER ")", (unsigned long long)parent, name,
                  CALLER_OF(ctx)))
        quick.slow.rmdir(req, parent, name);
}

static void on_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    const struct fuse_ctx *ctx = fuse_req_ctx(req);
    if (!answered(req, OP_OPEN, send_opened, 0, "(Ki" CALLER ")", (unsigned long long)ino, fi->flags,
                  CALLER_OF(ctx)))
        quick.slow.open(req, ino, fi);
}

static void on_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    const struct fuse_ctx *ctx = fuse_req_ctx(req);
    if (!answered(req, OP_OPENDIR, send_opened, 0, "(K" CALLER ")", (unsigned long long)ino,
                  CALLER_OF(ctx)))
        quick.slow.opendir(req, ino, fi);
}

static void on_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
                      struct fuse_file_info *fi)
{
    const struct fuse_ctx *ctx = fuse_req_ctx(req);
    if (!answered(req, OP_CREATE, send_opened, 1, "(KyIi" CALLER ")", (unsigned long long)parent,
                  name, (unsigned)mode, fi->flags, CALLER_OF(ctx)))
        quick.slow.create(req, parent, name, mode, fi);
}

static void on_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    if (!answered(req, OP_RELEASE, send_done, 0, "(K)", (unsigned long long)fi->fh))
        quick.slow.release(req, ino, fi);
}

static void on_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    if (!answered(req, OP_RELEASEDIR, send_done, 0, "(K)", (unsigned long long)fi->fh))
        quick.slow.releasedir(req, ino, fi);
}

/* ---- requests that pyfuse3 has no handler for ------------------------------------------------- */

/* Calls the handler with (opcode, req, ino, uid, gid, pid, *arguments); steals `arguments`. */
static void hand_over(fuse_req_t req, enum opcode opcode, fuse_ino_t ino, PyObject *arguments)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    const struct fuse_ctx *ctx = fuse_req_ctx(req);
    PyObject *head = NULL, *all = NULL, *result = NULL;

    channel.answered = NULL;
    if (arguments && channel.handler)
        head = Py_BuildValue("(iKKIIi)", opcode, (unsigned long long)(uintptr_t)req,
                             (unsigned long long)ino, ctx->uid, ctx->gid, (int)ctx->pid);
    if (head)
        all = PySequence_Concat(head, arguments);
    if (all)
        result = PyObject_CallObject(channel.handler, all);
    if (!result) {
        if (PyErr_Occurred())
            PyErr_WriteUnraisable(channel.handler);
        if (channel.answered != req) /* libfuse has freed it otherwise */
            fuse_reply_err(req, EIO);
    }
    Py_XDECREF(result);
    Py_XDECREF(all);
    Py_XDECREF(head);
    Py_XDECREF(arguments);
    PyGILState_Release(gil);
}

static void on_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value,
                        size_t size, int flags)
{
    hand_over(req, OP_SETXATTR, ino,
              Py_BuildValue("(yy#iI)", name, value, (Py_ssize_t)size, flags, channel.setxattr_flags));
    channel.setxattr_flags = 0;
}

static void on_ioctl(fuse_req_t req, fuse_ino_t ino, unsigned command, void *argument,
                     struct fuse_file_info *fi, unsigned flags, const void *in, size_t in_size,
                     size_t out_size)
{
    (void)argument;
    if (flags & IS_STATX) {
        hand_over(req, OP_STATX, ino, PyTuple_New(0));
        return;
    }
    hand_over(req, OP_IOCTL, ino,
              Py_BuildValue("(KIIy#n)", (unsigned long long)fi->fh, command, flags, in ? in : "",
                            (Py_ssize_t)in_size, (Py_ssize_t)out_size));
}

static void on_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t length,
                         struct fuse_file_info *fi)
{
    hand_over(req, OP_FALLOCATE, ino,
              Py_BuildValue("(KiLL)", (unsigned long long)fi->fh, mode, (long long)offset,
                            (long long)length));
}

static void on_lseek(fuse_req_t req, fuse_ino_t ino, off_t offset, int whence,
                     struct fuse_file_info *fi)
{
    hand_over(req, OP_LSEEK, ino,
              Py_BuildValue("(KLi)", (unsigned long long)fi->fh, (long long)offset, whence));
}

static void on_copy_file_range(fuse_req_t req, fuse_ino_t ino_in, off_t offset_in,
                               struct fuse_file_info *fi_in, fuse_ino_t ino_out, off_t offset_out,
                               struct fuse_file_info *fi_out, size_t length, int flags)
{
    hand_over(req, OP_COPY_FILE_RANGE, ino_in,
              Py_BuildValue("(KLKKLni)", (unsigned long long)fi_in->fh, (long long)offset_in,
                            (unsigned long long)ino_out, (unsigned long long)fi_out->fh,
                            (long long)offset_out, (Py_ssize_t)length, flags));
}

static void on_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
                           struct fuse_file_info *fi)
{
    hand_over(req, OP_READDIRPLUS, ino,
              Py_BuildValue("(KLn)", (unsigned long long)fi->fh, (long long)offset,
                            (Py_ssize_t)size));
}

/* ---- one request after the other --------------------------------------------------------------- */

static long microseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000L + now.tv_nsec / 1000;
}

/* Whether a request can be read now, or within spin_us; with the GIL, which others have meanwhile. */
static bool is_readable(int fd)
{
    struct pollfd readable = {.fd = fd, .events = POLLIN};
    bool ready = poll(&readable, 1, 0) != 0;

    if (!ready && channel.spin_us > 0) {
        Py_BEGIN_ALLOW_THREADS
        for (long end = microseconds() + channel.spin_us; !ready && microseconds() < end;)
            ready = poll(&readable, 1, 0) != 0;
        Py_END_ALLOW_THREADS
    }
    channel.nothing = !ready;
    return ready;
}

/* Whether none of pyfuse3's coroutines has to be awaited for the answer. */
static bool is_answered_here(const struct request *header)
{
    switch (header->opcode) {
    case OP_SETXATTR:
    case OP_IOCTL:
    case OP_FALLOCATE:
    case OP_LSEEK:
    case OP_COPY_FILE_RANGE:
    case OP_READDIRPLUS:
        return true;
    }
    return header->opcode < OP_LIMIT && quick.functions[header->opcode];
}

static ssize_t channel_read(int fd, void *buffer, size_t size, void *userdata)
{
    (void)userdata;
    do {
        ssize_t got = read_request(fd, buffer, size);
        if (got < (ssize_t)sizeof(struct request) || !is_answered_here(buffer)
            || !PyGILState_Check())
            return got;
        struct fuse_buf message = {.mem = buffer, .size = (size_t)got, .fd = -1};
        unsigned char as_it_was[SETATTR_BYTES];
        size_t kept = message.size < sizeof as_it_was ? message.size : sizeof as_it_was;
        memcpy(as_it_was, buffer, kept);
        channel.inside = true;
        fuse_session_process_buf(channel.session, &message);
        channel.inside = false;
        if (channel.declined) {
            memcpy(buffer, as_it_was, kept); /* libfuse takes FATTR_FH out of a SETATTR */
            return got;
        }
    } while (channel.in_a_row < MOST_IN_A_ROW && is_readable(fd));
    errno = EINTR; /* nothing is left to be done */
    return -1;
}

EXPORT struct fuse_session *fuse_session_new(struct fuse_args *args,
                                             const struct fuse_lowlevel_ops *op, size_t op_size,
                                             void *userdata)
{
    typedef struct fuse_session *(*new_t)(struct fuse_args *, const struct fuse_lowlevel_ops *,
                                          size_t, void *);
    new_t real = (new_t)dlsym(RTLD_NEXT, "fuse_session_new");
    struct fuse_lowlevel_ops filled = {0};

    if (!real) {
        errno = ENOSYS;
        return NULL;
    }
    memcpy(&filled, op, op_size < sizeof filled ? op_size : sizeof filled);
    quick.slow = filled;
    filled.lookup = on_lookup;
    filled.getattr = on_getattr;
    filled.setattr = on_setattr;
    filled.getxattr = on_getxattr;
    filled.mkdir = on_mkdir;
    filled.unlink = on_unlink;
    filled.rmdir = on_rmdir;
    filled.open = on_open;
    filled.create = on_create;
    filled.release = on_release;
    filled.opendir = on_opendir;
    filled.releasedir = on_releasedir;
    filled.write_buf = NULL; /* one copy less through write */
    filled.setxattr = on_setxattr;
    filled.ioctl = on_ioctl;
    filled.fallocate = on_fallocate;
    filled.lseek = on_lseek;
    filled.copy_file_range = on_copy_file_range;
    filled.readdirplus = on_readdirplus;
    channel.session = real(args, &filled, sizeof filled, userdata);
    return channel.session;
}

EXPORT int fuse_session_mount(struct fuse_session *session, const char *mountpoint)
{
    static const struct fuse_custom_io io = {.writev = channel_writev, .read = channel_read};
    (void)mountpoint; /* mounted already, by the supervisor */

    if (channel.fd < 0 || fuse_session_custom_io(session, &io, channel.fd))
        return -1;
    channel.attached = true;
    return 0;
}

/* ---- Python ---------------------------------------------------------------------------------- */

PyDoc_STRVAR(attach_doc,
"attach(fd, init_fd, wanted, stack_depth, handler) -> bool\n\n"
"Serve the mounted /dev/fuse descriptor `fd`, which libfuse closes at the end. `init_fd` is a file\n"
"that keeps the kernel's INIT request; where it holds one already, that is replayed, the reply to it\n"
"dropped, and requests that were read but never answered are asked for again. `wanted` are INIT\n"
"flags to set where the kernel offers them. `handler(opcode, req, ino, uid, gid, pid, *arguments)`\n"
"is called for the requests that pyfuse3 has no handler for, and owes each a reply().\n"
"True when this is a replay. OSError.");

static PyObject *py_attach(PyObject *self, PyObject *args)
{
    unsigned long long wanted;
    PyObject *handler;
    int fd, init_fd;
    unsigned depth;
    (void)self;

    if (!PyArg_ParseTuple(args, "iiKIO", &fd, &init_fd, &wanted, &depth, &handler))
        return NULL;
    memset(&channel.init, 0, sizeof channel.init);
    memset(channel.seen, 0, sizeof channel.seen);
    memset(channel.pending, 0, sizeof channel.pending);
    if (init_fd >= 0 && pread(init_fd, &channel.init, sizeof channel.init, 0) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    if (channel.init.len > sizeof channel.init.request)
        return PyErr_Format(PyExc_ValueError, "the saved INIT request is damaged");
    channel.fd = fd;
    channel.init_fd = init_fd;
    channel.wanted = wanted;
    channel.stack_depth = depth;
    channel.agreed = channel.init.flags;
    channel.replay = channel.init.len > 0;
    channel.attached = channel.nothing = channel.declined = false;
    channel.in_a_row = 0;
    Py_XSETREF(channel.handler, Py_NewRef(handler));
    return PyBool_FromLong(channel.replay);
}

PyDoc_STRVAR(detach_doc, "detach() -> None\n\nForget the descriptor and the handler.");

static PyObject *py_detach(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    channel.fd = channel.init_fd = -1;
    channel.attached = channel.replay = false;
    Py_CLEAR(channel.handler);
    for (int opcode = 0; opcode < OP_LIMIT; opcode++)
        Py_CLEAR(quick.functions[opcode]);
    Py_CLEAR(quick.changing);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(attached_doc,
"attached() -> bool\n\nWhether libfuse took our read and writev: whether the interposition worked.");

static PyObject *py_attached(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    return PyBool_FromLong(channel.attached);
}

PyDoc_STRVAR(agreed_doc, "agreed() -> int\n\nThe INIT flags that kernel and file system agreed on.");

static PyObject *py_agreed(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    return PyLong_FromUnsignedLongLong(channel.agreed);
}

PyDoc_STRVAR(current_doc,
"current() -> tuple[int, bool]\n\n"
"The id of the request that was read last, and whether an earlier worker may have carried it out\n"
"already. Right until the next request is read: to be asked at once.");

static PyObject *py_current(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    return Py_BuildValue("(KN)", (unsigned long long)(channel.current & ~RESENT),
                         PyBool_FromLong(!!(channel.current & RESENT)));
}

PyDoc_STRVAR(current_owner_doc,
"current_owner() -> tuple[int, int]\n\nThe user and group that sent the request that was read last.");

static PyObject *py_current_owner(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    return Py_BuildValue("(II)", channel.uid, channel.gid);
}

PyDoc_STRVAR(ready_doc,
"ready(spin_us: int) -> bool\n\n"
"Whether a request can be read now, or within spin_us microseconds. False also after many in a row, so\n"
"that everybody else has a turn.");

static PyObject *py_ready(PyObject *self, PyObject *arg)
{
    long spin = PyLong_AsLong(arg);
    bool was_looked_for = channel.nothing || channel.in_a_row >= MOST_IN_A_ROW;
    (void)self;

    if (PyErr_Occurred())
        return NULL;
    channel.spin_us = spin;
    channel.nothing = false;
    if (channel.replay)
        Py_RETURN_TRUE;
    if (!was_looked_for && is_readable(channel.fd))
        Py_RETURN_TRUE;
    channel.nothing = false;
    channel.in_a_row = 0;
    Py_RETURN_FALSE;
}

PyDoc_STRVAR(set_open_doc,
"set_open(fh: int, open_flags: int, backing_id: int) -> None\n\n"
"What the reply to the open that hands out `fh` will say (FOPEN_*). To be called right before it.");

static PyObject *py_set_open(PyObject *self, PyObject *args)
{
    struct pending_open pending = {.used = true};
    unsigned long long fh;
    (void)self;

    if (!PyArg_ParseTuple(args, "KIi", &fh, &pending.flags, &pending.backing_id))
        return NULL;
    pending.fh = fh;
    for (int i = 0; i < PENDING_OPENS; i++)
        if (!channel.pending[i].used) {
            channel.pending[i] = pending;
            Py_RETURN_NONE;
        }
    return PyErr_Format(PyExc_RuntimeError, "opens without a reply");
}

PyDoc_STRVAR(reply_doc,
"reply(req: int, error: int, payload: bytes) -> None\n\n"
"Answer a request that the handler was given: with an errno, or with 0 and the reply's body.");

static PyObject *py_reply(PyObject *self, PyObject *args)
{
    unsigned long long req;
    Py_buffer payload;
    int error;
    (void)self;

    if (!PyArg_ParseTuple(args, "Kiy*", &req, &error, &payload))
        return NULL;
    fuse_req_t request = (fuse_req_t)(uintptr_t)req;
    channel.answered = request;
    int failed = error || !payload.len ? fuse_reply_err(request, error)
                                       : fuse_reply_buf(request, payload.buf, (size_t)payload.len);
    PyBuffer_Release(&payload);
    if (failed && failed != -ENOENT) { /* ENOENT: nobody waits for it any more */
        errno = -failed;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(pack_entries_doc,
"pack_entries(entries, start, size, dev, entry_timeout_s, attribute_timeout_s, changing,\n"
"             changing_timeout_s) -> tuple[bytes, int]\n\n"
"The body of a READDIRPLUS reply: as many of entries[start:], each (name, offset, Attributes), as fit\n"
"into `size` bytes, and how many those are. Entries on another device than `dev` are named only.\n"
"`changing` holds the inode numbers whose attributes are not to be believed for long.");

static PyObject *py_pack_entries(PyObject *self, PyObject *args)
{
    PyObject *entries, *changing;
    Py_ssize_t start, size, at = 0, index;
    unsigned long long dev;
    double entry_s, attribute_s, changing_s;
    (void)self;

    if (!PyArg_ParseTuple(args, "O!nnKddO!d", &PyList_Type, &entries, &start, &size, &dev, &entry_s,
                          &attribute_s, &PySet_Type, &changing, &changing_s))
        return NULL;
    PyObject *packed = PyBytes_FromStringAndSize(NULL, size);
    if (!packed)
        return NULL;
    for (index = start; index < PyList_GET_SIZE(entries); index++) {
        PyObject *name, *attributes;
        long long offset;
        struct direntplus entry = {0};

        if (!PyArg_ParseTuple(PyList_GET_ITEM(entries, index), "SLO!", &name, &offset, &PyTuple_Type,
                              &attributes)) {
            Py_DECREF(packed);
            return NULL;
        }
        Py_ssize_t length = PyBytes_GET_SIZE(name), end = at + (Py_ssize_t)sizeof entry + length;
        Py_ssize_t padded = (end + 7) & ~(Py_ssize_t)7;
        if (padded > size)
            break;
        entry.ino = number(attributes, 0);
        entry.off = (uint64_t)offset;
        entry.namelen = (uint32_t)length;
        entry.type = ((uint32_t)number(attributes, 2) & 0170000) >> 12;
        if (number(attributes, 15) == dev) {
            int changes = PySet_GET_SIZE(changing)
                ? PySet_Contains(changing, PyTuple_GET_ITEM(attributes, 0)) : 0;
            put_entry(&entry.entry, attributes);
            entry.entry.nodeid = entry.ino;
            put_timeout(entry_s, &entry.entry.entry_valid, &entry.entry.entry_valid_nsec);
            put_timeout(changes ? changing_s : attribute_s, &entry.entry.attr_valid,
                        &entry.entry.attr_valid_nsec);
        }
        char *to = PyBytes_AS_STRING(packed) + at;
        memcpy(to, &entry, sizeof entry);
        memcpy(to + sizeof entry, PyBytes_AS_STRING(name), (size_t)length);
        memset(to + sizeof entry + length, 0, (size_t)(padded - end));
        at = padded;
    }
    if (_PyBytes_Resize(&packed, at))
        return NULL;
    return Py_BuildValue("(Nn)", packed, index - start);
}

struct dirent64 {
    uint64_t ino;
    int64_t off;
    unsigned short reclen;
    unsigned char type;
    char name[];
} __attribute__((packed));

PyDoc_STRVAR(pack_names_doc,
"pack_names(dirents: bytes, size: int, hidden: bytes, hidden_prefix: bytes) -> bytes\n\n"
"The body of a READDIRPLUS reply that says nothing of the entries but their names (nodeid 0): as many\n"
"of the linux_dirent64 records as fit into `size` bytes, without the name `hidden` and those that begin\n"
"with `hidden_prefix`. For a directory of which the kernel knows the entries.");

static PyObject *py_pack_names(PyObject *self, PyObject *args)
{
    const char *records, *hidden, *prefix;
    Py_ssize_t got, size, prefix_length, at = 0, from = 0;
    (void)self;

    if (!PyArg_ParseTuple(args, "y#nyy#", &records, &got, &size, &hidden, &prefix, &prefix_length))
        return NULL;
    PyObject *packed = PyBytes_FromStringAndSize(NULL, size);
    if (!packed)
        return NULL;
    while (from + (Py_ssize_t)sizeof(struct dirent64) < got) {
        const struct dirent64 *record = (const struct dirent64 *)(records + from);
        struct direntplus entry = {0};
        if (record->reclen <= sizeof *record || from + record->reclen > got)
            break;
        size_t length = strnlen(record->name, record->reclen - sizeof *record);
        from += record->reclen;
        if (!strcmp(record->name, hidden) || !strncmp(record->name, prefix, (size_t)prefix_length))
            continue;
        Py_ssize_t end = at + (Py_ssize_t)(sizeof entry + length);
        Py_ssize_t padded = (end + 7) & ~(Py_ssize_t)7;
        if (padded > size)
            break;
        entry.ino = record->ino;
        entry.off = (uint64_t)record->off;
        entry.namelen = (uint32_t)length;
        entry.type = record->type;
        char *to = PyBytes_AS_STRING(packed) + at;
        memcpy(to, &entry, sizeof entry);
        memcpy(to + sizeof entry, record->name, length);
        memset(to + sizeof entry + length, 0, (size_t)(padded - end));
        at = padded;
    }
    if (_PyBytes_Resize(&packed, at))
        return NULL;
    return packed;
}

PyDoc_STRVAR(set_quick_doc,
"set_quick(functions: dict[int, Callable], root_ino: int, changing: set[int]) -> None\n\n"
"Answer requests with these functions, by opcode. Each returns an errno (0: done), NotImplemented for\n"
"pyfuse3's own handler, or what was found; a caller is (uid, gid, pid, umask, request, resent):\n\n"
"LOOKUP(parent, name), MKDIR(parent, name, mode, caller)                     Attributes\n"
"GETATTR(node), SETATTR(node, FUSE_SET_ATTR_*, mode, uid, gid, atime, mtime)         Attributes\n"
"                                            a time is (seconds, nanoseconds)\n"
"GETXATTR(node, name)                                                        bytes\n"
"UNLINK(parent, name, caller), RMDIR, RELEASE(fh), RELEASEDIR(fh)\n"
"OPEN(node, flags, caller), OPENDIR(node, caller)         fh, FOPEN_* flags, backing id\n"
"CREATE(parent, name, mode, flags, caller)                the same, and Attributes\n\n"
"0 from LOOKUP: there is no such entry. `root_ino` is the inode number of node 1; `changing` is a set\n"
"of inode numbers, looked at for every answer. ValueError: no such opcode.");

static bool has_quick(long opcode)
{
    switch (opcode) {
    case OP_LOOKUP: case OP_GETATTR: case OP_SETATTR: case OP_MKDIR: case OP_UNLINK: case OP_RMDIR:
    case OP_OPEN: case OP_RELEASE: case OP_GETXATTR: case OP_OPENDIR: case OP_RELEASEDIR:
    case OP_CREATE:
        return true;
    }
    return false;
}

static PyObject *py_set_quick(PyObject *self, PyObject *args)
{
    PyObject *functions, *changing, *key, *function;
    unsigned long long root_ino;
    Py_ssize_t at = 0;
    (void)self;

    if (!PyArg_ParseTuple(args, "O!KO!", &PyDict_Type, &functions, &root_ino, &PySet_Type,
                          &changing))
        return NULL;
    while (PyDict_Next(functions, &at, &key, &function)) {
        long opcode = PyLong_AsLong(key);
        if (opcode == -1 && PyErr_Occurred())
            return NULL;
        if (!has_quick(opcode))
            return PyErr_Format(PyExc_ValueError, "no quick function for opcode %ld", opcode);
        Py_XSETREF(quick.functions[opcode], Py_NewRef(function));
    }
    Py_XSETREF(quick.changing, Py_NewRef(changing));
    quick.root_ino = root_ino;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(set_timeouts_doc,
"set_timeouts(entry_s, attribute_s, changing_s) -> None\n\n"
"For how long the kernel may believe what the quick functions answer.");

static PyObject *py_set_timeouts(PyObject *self, PyObject *args)
{
    (void)self;
    if (!PyArg_ParseTuple(args, "ddd", &quick.entry_s, &quick.attribute_s, &quick.changing_s))
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(seen_doc, "seen() -> list[int]\n\nHow many requests were read, by opcode.");

static PyObject *py_seen(PyObject *self, PyObject *unused)
{
    PyObject *list = PyList_New(OP_LIMIT);
    (void)self, (void)unused;

    for (int i = 0; list && i < OP_LIMIT; i++) {
        PyObject *number = PyLong_FromUnsignedLongLong(channel.seen[i]);
        if (!number)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, number);
    }
    return list;
}

static PyMethodDef module_methods[] = {
    {"attach", py_attach, METH_VARARGS, attach_doc},
    {"detach", py_detach, METH_NOARGS, detach_doc},
    {"attached", py_attached, METH_NOARGS, attached_doc},
    {"agreed", py_agreed, METH_NOARGS, agreed_doc},
    {"current", py_current, METH_NOARGS, current_doc},
    {"current_owner", py_current_owner, METH_NOARGS, current_owner_doc},
    {"ready", py_ready, METH_O, ready_doc},
    {"set_open", py_set_open, METH_VARARGS, set_open_doc},
    {"reply", py_reply, METH_VARARGS, reply_doc},
    {"pack_names", py_pack_names, METH_VARARGS, pack_names_doc},
    {"pack_entries", py_pack_entries, METH_VARARGS, pack_entries_doc},
    {"set_quick", py_set_quick, METH_VARARGS, set_quick_doc},
    {"set_timeouts", py_set_timeouts, METH_VARARGS, set_timeouts_doc},
    {"seen", py_seen, METH_NOARGS, seen_doc},
    {0},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "modamafs.fuse._channel",
    .m_doc = "What passes between the kernel and pyfuse3. See _channel.c for the messages.",
    .m_size = -1,
    .m_methods = module_methods,
};

PyMODINIT_FUNC PyInit__channel(void)
{
    _Static_assert(sizeof(struct request) == 40, "fuse_in_header");
    _Static_assert(sizeof(struct init_out) == 64, "fuse_init_out");
    _Static_assert(sizeof(struct entry_out) == 128, "fuse_entry_out");
    _Static_assert(sizeof(struct attr_out) == 104, "fuse_attr_out");
    _Static_assert(sizeof(struct direntplus) == 152, "fuse_direntplus");
    return PyModule_Create(&module);
}
