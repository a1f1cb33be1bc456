#include "base/error.h"

namespace ferry {

int exit_code(ErrorKind kind) {
    switch (kind) {
        case ErrorKind::usage:
            return 2;
        case ErrorKind::checkpoint:
            return 3;
        case ErrorKind::input:
            return 4;
        case ErrorKind::communication:
            return 5;
        case ErrorKind::memory:
            return 6;
        case ErrorKind::requeue:
            return 75;
    }
    return 1;
}

const char* to_string(ErrorKind kind) {
    switch (kind) {
        case ErrorKind::usage:
            return "usage";
        case ErrorKind::checkpoint:
            return "checkpoint";
        case ErrorKind::input:
            return "input";
        case ErrorKind::communication:
            return "communication";
        case ErrorKind::memory:
            return "memory";
        case ErrorKind::requeue:
            return "stopped early";
    }
    return "error";
}

}  // namespace ferry
